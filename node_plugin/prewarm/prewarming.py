"""The loop that fills caches for prewarm requests, before any pod needs them.

One thread fills one image at a time, behind every fill that a pod waits for. A moving source is resolved once
per generation of a request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from csi.errors import Busy, ClusterUnavailable, DataCacheError
from csi.images.node_store.store import Store
from csi.registry.prewarms.prewarms import NodePrewarms, PrewarmedCache
from node_plugin.fills.fills import PODS_FIRST_MESSAGE
from node_plugin.fills.uploads import Uploads
from node_plugin.prewarm.active_request import ActiveRequest, Failure
from node_plugin.prewarm.active_requests import RESYNC_INTERVAL, ActiveRequests
from node_plugin.prewarm.cache_prewarmer import CachePrewarmer
from node_plugin.prewarm.request_changes import RequestChanges
from node_plugin.prewarm.state_reporter import StateReporter
from node_plugin.volumes.preparation import VolumePreparation

log = logging.getLogger("datacache.prewarming")

# Seconds.
_MIN_BACKOFF, _MAX_BACKOFF, _BUSY_RETRY_INTERVAL = 30.0, 600.0, 5.0


class PrewarmLoop:
    """Worker on the prewarm requests for one node: which cache is worked on when, and when again.

    `check_node` raises if the node cannot mount images. `preparation` resolves moving sources at the origin,
    in spite of earlier proofs. `min_backoff` is the first pause after a failure, in seconds.
    """

    def __init__(
        self,
        prewarms: NodePrewarms,
        preparation: VolumePreparation,
        store: Store,
        check_node: Callable[[], None],
        uploads: Uploads | None = None,
        min_backoff: float = _MIN_BACKOFF,
    ) -> None:
        self._prewarms, self._fills = prewarms, preparation.fills
        self._check_node, self._uploads = check_node, uploads
        self._min_backoff = min_backoff
        self._changes = RequestChanges()
        self._requests = ActiveRequests(
            prewarms, store, preparation.pins, self._changes, self._on_image_released
        )
        self._reporter = StateReporter(prewarms, preparation.fills)
        self._prewarmer = CachePrewarmer(
            prewarms, preparation, store, self._requests, self._changes, uploads, self._reporter
        )

    def list_sealed(self) -> set[str]:
        """List the digests of sealed images that requests for this node keep from eviction."""
        return self._requests.list_sealed()

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Work on the requests in the background for the block."""
        with self._prewarms.watch(self._changes.on_changed):
            thread = threading.Thread(target=self._run_until_stopped, name="prewarming", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._changes.stop()
                thread.join()

    def _on_image_released(self, digest: str) -> None:
        self._fills.preempt_prefetches(digest)
        # The image store's garbage collection may remove it: the next request must ask again.
        if self._uploads:
            self._uploads.forget(digest)

    def _run_until_stopped(self) -> None:
        while not self._changes.is_stopped:
            pause = self._min_backoff
            try:
                self._requests.sync()
                pause = self._work_once()
            except DataCacheError as error:
                log.warning("prewarm requests not read, retrying later", extra={"fields": {"reason": error}})
                pause = self._min_backoff if isinstance(error, ClusterUnavailable) else RESYNC_INTERVAL
            except Exception as error:  # one malformed object must not end the loop
                log.error("prewarming failed", extra={"fields": {"reason": type(error).__name__}})
            self._changes.wait(pause)

    def _work_once(self) -> float:
        """Work on each request once; return the seconds until the next round."""
        waits = [RESYNC_INTERVAL]
        requests = self._requests.list_by_longest_wait()
        for active in requests:
            active.ready_keys = {
                key
                for key, cache in active.keyed_caches
                if self._prewarmer.is_ready(cache, active.resolved.get(key))
            }
            self._reporter.report_if_changed(active)
        for active in requests:
            self._changes.begin_work(active.request.name)
            for key, cache in active.keyed_caches:
                waits.append(self._work_on_cache(active, key, cache))
                if self._changes.is_sync_due:
                    # The loop lists the requests again and starts the next round at once.
                    return 0.0
            self._reporter.report_if_changed(active)
        return min(waits)

    def _work_on_cache(self, active: ActiveRequest, key: str, cache: PrewarmedCache) -> float:
        """Prewarm one cache, unless it is ready or has failed shortly before.

        Return the seconds until it has its next turn.
        """
        failure = active.failures.get(key)
        if self._prewarmer.is_ready(cache, active.resolved.get(key)):
            return self._set_ready(active, key)
        active.ready_keys.discard(key)
        if failure and failure.retry_at > (now := time.monotonic()):
            return failure.retry_at - now
        try:
            # First: nothing is fetched for a node that cannot mount it.
            self._check_node()
            if self._fills.has_waiting_pods():
                raise Busy(PODS_FIRST_MESSAGE)
            self._prewarmer.prewarm(active, key, cache)
        except Busy as error:
            # Its turn is over, unless its fill or upload is running: that goes on next time.
            if not self._prewarmer.is_in_progress(active):
                active.last_worked_at = time.monotonic()
            if not self._changes.should_yield:
                self._reporter.report_pending(active, str(error))
            return _BUSY_RETRY_INTERVAL
        except DataCacheError as error:
            pause = min(2 * failure.backoff, _MAX_BACKOFF) if failure else self._min_backoff
            active.failures[key] = Failure(str(error), time.monotonic() + pause, pause)
            fields = {"object": active.request.key, "reason": error}
            log.warning("cache not prewarmed", extra={"fields": fields})
            return pause
        return self._set_ready(active, key)

    @staticmethod
    def _set_ready(active: ActiveRequest, key: str) -> float:
        active.ready_keys.add(key)
        active.failures.pop(key, None)
        return RESYNC_INTERVAL
