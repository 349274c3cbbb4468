"""The loop that fills caches for prewarm requests, before any pod needs them.

One thread fills one image at a time, behind every fill that a pod waits for. A moving source is resolved once
per generation of a request; the results are stored in a file, so that a restart does not resolve it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from csi.concurrency.deadline import Deadline
from csi.errors import Busy, ClusterUnavailable, DataCacheError, FailedPrecondition, NotFound
from csi.images.node_store.store import Store
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.registry.prewarms.prewarms import (
    NodePrewarms,
    NodePrewarmState,
    PrewarmedCache,
    PrewarmRequest,
    PrewarmState,
)
from node_plugin.fills.fill_events import percent
from node_plugin.fills.fills import PODS_FIRST_MESSAGE
from node_plugin.fills.uploads import Uploads
from node_plugin.prewarm.active_request import ActiveRequest, Failure
from node_plugin.prewarm.resolved_caches import ResolvedCache, read_resolved, write_resolved
from node_plugin.volumes.preparation import VolumePreparation
from node_plugin.volumes.records import NodeVolume

log = logging.getLogger("datacache.prewarming")

_FILE_NAME = "prewarms.json"
# Seconds, as all intervals here.
_RESOLVE_TIMEOUT = 100.0
# No event tells of changed labels of the node or of a corrected Secret; no pod waits, so polling may be slow.
_RESYNC_INTERVAL, _MIN_BACKOFF, _MAX_BACKOFF = 300.0, 30.0, 600.0
# A fill is waited for in slices, to report its progress in between.
_SLICE_SECONDS, _BUSY_RETRY_INTERVAL, _REPORT_INTERVAL = 2.0, 5.0, 10.0
# Requests, those for other nodes too, may change faster than a node can list them: after a listing, the node
# works for at least nine times as long as that took.
_MIN_WORK_SECONDS, _WORK_SHARE = 1.0, 9.0
_REQUESTS_CHANGED_MESSAGE = "the prewarm requests for this node have changed"


class PrewarmLoop:
    """Worker on the prewarm requests for one node.

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
        self._prewarms, self._preparation, self._store = prewarms, preparation, store
        self._fills, self._pins = preparation.fills, preparation.pins
        self._check_node, self._uploads = check_node, uploads
        self._min_backoff = min_backoff
        self._file = store.root / _FILE_NAME
        # None: a request has changed since they were listed.
        self._requests: list[PrewarmRequest] | None = None
        self._synced_at = float("-inf")
        self._work_until = 0.0
        self._changed = threading.Event()
        self._is_stopped = False
        self._changed_names: set[str] = set()
        self._current_name = ""
        self._active: dict[str, ActiveRequest] = {}
        self._deadline = Deadline(0)
        self._resolved = read_resolved(self._file)
        self._digests = frozenset(cache.digest for cache in self._resolved.values())
        # To the pins, a prewarmed cache is an inline volume whose id is its key.
        self._pins.restore(
            NodeVolume(key, cache.digest, {}, 0, 0, True, pin=cache.pin)
            for key, cache in self._resolved.items()
        )

    def list_sealed(self) -> set[str]:
        """List the digests of sealed images that requests for this node keep from eviction."""
        return {digest for digest in self._digests if self._store.find_sealed(digest)}

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Work on the requests in the background for the block."""
        with self._prewarms.watch(self._on_request_changed):
            thread = threading.Thread(target=self._run_until_stopped, name="prewarming", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._is_stopped = True
                # Wakes the thread and cancels what it waits for.
                self._on_request_changed(self._current_name)
                thread.join()

    def _on_request_changed(self, name: str) -> None:
        """Cancel the work on the changed request; other requests are listed again when it is their time."""
        self._changed_names.add(name)
        self._changed.set()
        if name == self._current_name:
            self._deadline.cancel(_REQUESTS_CHANGED_MESSAGE)

    @property
    def _is_current_changed(self) -> bool:
        """Whether the request being worked on has changed."""
        return self._is_stopped or self._current_name in self._changed_names

    @property
    def _is_sync_due(self) -> bool:
        """Whether the requests must be listed again before the next one is worked on."""
        return self._is_stopped or (self._changed.is_set() and time.monotonic() > self._work_until)

    @property
    def _should_yield(self) -> bool:
        """Whether the work on the current request must stop now."""
        return self._is_current_changed or self._is_sync_due

    def _run_until_stopped(self) -> None:
        while not self._is_stopped:
            if self._changed.is_set():
                self._changed.clear()
                self._changed_names.clear()
                self._requests = None
            pause = _RESYNC_INTERVAL
            try:
                self._sync_requests()
                pause = self.work_once()
            except DataCacheError as error:
                log.warning("prewarm requests not read, retrying later", extra={"fields": {"reason": error}})
                pause = self._min_backoff if isinstance(error, ClusterUnavailable) else _RESYNC_INTERVAL
            except Exception as error:  # one malformed object must not end the loop
                log.error("prewarming failed", extra={"fields": {"reason": type(error).__name__}})
            if not self._is_stopped:
                self._changed.wait(pause)

    def _sync_requests(self) -> None:
        """List the requests for this node if they may have changed, and release caches that none requests."""
        if self._requests is not None and time.monotonic() - self._synced_at < _RESYNC_INTERVAL:
            return
        started_at = time.monotonic()
        requests = self._prewarms.list_requests() if self._requests is None else self._requests
        requests_by_key = {request.key: request for request in requests}
        # A request to the API server, so only if a request selects nodes by label.
        labels = self._read_node_labels() if any(request.selector for request in requests) else {}
        self._requests, self._synced_at = requests, time.monotonic()
        for key in {key for key, request in requests_by_key.items() if not request.selects_node(labels)}:
            request = requests_by_key.pop(key)
            if key in self._active:
                self._prewarms.report_state(request, None)
        active = {}
        for key, request in requests_by_key.items():
            known = self._active.get(key)
            is_unchanged = known is not None and known.request == request
            active[key] = known if known and is_unchanged else self._activate(request)
        self._release_dropped(active)
        self._active = active
        now = time.monotonic()
        self._work_until = now + max(_MIN_WORK_SECONDS, _WORK_SHARE * (now - started_at))

    def _read_node_labels(self) -> Mapping[str, str]:
        try:
            return self._prewarms.read_node_labels()
        except NotFound:
            return {}

    def _activate(self, request: PrewarmRequest) -> ActiveRequest:
        active = ActiveRequest(request)
        active.resolved = {key: self._resolved[key] for key in active.keys if key in self._resolved}
        return active

    def _release_dropped(self, active: Mapping[str, ActiveRequest]) -> None:
        remaining = {key: cache for request in active.values() for key, cache in request.resolved.items()}
        # Another request may need the same image, whose fill then goes on.
        digests = {cache.digest for cache in remaining.values()}
        for key, cache in self._resolved.items():
            if key not in remaining:
                self._pins.release(key)
                if cache.digest not in digests:
                    self._fills.preempt_prefetches(cache.digest)
                    self._forget_upload(cache.digest)
        if remaining.keys() != self._resolved.keys():
            self._save_resolved(remaining)

    def _forget_upload(self, digest: str) -> None:
        # The image store's garbage collection may remove it: the next request must ask again.
        if self._uploads:
            self._uploads.forget(digest)

    def _save_resolved(self, resolved: dict[str, ResolvedCache]) -> None:
        self._resolved = resolved
        self._digests = frozenset(cache.digest for cache in resolved.values())
        write_resolved(self._file, resolved)

    def work_once(self) -> float:
        """Work on each request once; return the seconds until the next round."""
        waits = [_RESYNC_INTERVAL]
        for active in self._active.values():
            active.ready_keys = {
                key for key, cache in active.keyed_caches if self._is_ready(cache, active.resolved.get(key))
            }
            self._report_if_news(active)
        for active in self._by_longest_wait():
            for key, cache in active.keyed_caches:
                self._current_name = active.request.name
                waits.append(self._prewarm_cache(active, key, cache))
                if self._is_sync_due:
                    # The loop lists the requests again and starts the next round at once.
                    return 0.0
            self._report_if_news(active)
        return min(waits)

    def _by_longest_wait(self) -> list[ActiveRequest]:
        """Return the requests, the one that waits longest first.

        Each gets its turn, even if frequent changes end every round after a few requests.
        """
        return sorted(self._active.values(), key=lambda active: active.last_worked_at)

    def _is_in_progress(self, active: ActiveRequest) -> bool:
        digests = {cache.digest for cache in active.resolved.values()}
        return not digests.isdisjoint(self._fills.progress()) or bool(
            self._uploads and any(map(self._uploads.get_progress, digests))
        )

    def _prewarm_cache(self, active: ActiveRequest, key: str, cache: PrewarmedCache) -> float:
        resolved = active.resolved.get(key)
        failure = active.failures.get(key)
        now = time.monotonic()
        if self._is_ready(cache, resolved):
            active.ready_keys.add(key)
            active.failures.pop(key, None)
            return _RESYNC_INTERVAL
        active.ready_keys.discard(key)
        if failure and failure.retry_at > now:
            return failure.retry_at - now
        try:
            self._resolve_and_fill(active, key, cache)
        except Busy as error:
            # Its turn is over, unless its fill or upload is running: that goes on next time.
            if not self._is_in_progress(active):
                active.last_worked_at = time.monotonic()
            if not self._should_yield:
                self._report_if_news(
                    active, NodePrewarmState(PrewarmState.PENDING, self._percent(active), str(error))
                )
            return _BUSY_RETRY_INTERVAL
        except DataCacheError as error:
            pause = min(2 * failure.backoff, _MAX_BACKOFF) if failure else self._min_backoff
            active.failures[key] = Failure(str(error), time.monotonic() + pause, pause)
            fields = {"object": active.request.key, "reason": error}
            log.warning("cache not prewarmed", extra={"fields": fields})
            return pause
        active.ready_keys.add(key)
        active.failures.pop(key, None)
        return _RESYNC_INTERVAL

    def _is_ready(self, cache: PrewarmedCache, resolved: ResolvedCache | None) -> bool:
        """Return whether the image is sealed on this node and, for a DataCache, in the image store if any."""
        if resolved is None or self._store.find_sealed(resolved.digest) is None:
            return False
        return not cache.data_cache or self._uploads is None or self._uploads.is_uploaded(resolved.digest)

    def _resolve_and_fill(self, active: ActiveRequest, key: str, cache: PrewarmedCache) -> None:
        # First: nothing is fetched for a node that cannot mount it.
        self._check_node()
        if self._fills.has_waiting_pods():
            raise Busy(PODS_FIRST_MESSAGE)
        if cache.data_cache:
            self._fill_data_cache(active, key, cache)
            return
        secrets = Secrets()
        if cache.secret_name:
            secrets = Secrets(self._prewarms.read_secret(active.request.namespace, cache.secret_name))
        self._deadline = self._new_deadline(_RESOLVE_TIMEOUT)
        resolved = active.resolved.get(key)
        has_manifest = resolved is not None and (
            self._store.find_sealed(resolved.digest) or self._store.find_partial(resolved.digest)
        )
        if resolved is None or not has_manifest:
            resolved = self._resolve(active, key, cache, resolved, secrets)
        self._fill(active, ContentRef(resolved.digest, resolved.access, secrets))

    def _fill_data_cache(self, active: ActiveRequest, key: str, cache: PrewarmedCache) -> None:
        """Fill a DataCache with its own credential, then upload it to the image store, if any."""
        grants = self._preparation.grants
        if grants is None or self._uploads is None:
            raise FailedPrecondition(
                "this node has no registry of DataCaches; start the node plugin with --registry"
            )
        granted = grants.authorize_prewarm(cache.data_cache, active.request.namespace)
        content = granted.content_ref
        if cache.digest not in ("", content.digest):
            raise Busy(
                f"the DataCache {cache.data_cache} still holds {content.digest[:12]}, "
                f"and {cache.digest[:12]} was requested"
            )
        self._deadline = self._new_deadline(_RESOLVE_TIMEOUT)
        grants.ensure_manifest(key, granted, self._deadline)
        resolved = ResolvedCache(content.digest, dict(content.source))
        if active.resolved.get(key) != resolved:
            active.resolved[key] = resolved
            self._save_resolved({**self._resolved, key: resolved})
        self._fill(active, content)
        is_trusted = grants.has_trusted_bytes(granted)
        self._preparation.verify(key, content, is_trusted, self._new_deadline(_RESOLVE_TIMEOUT))
        self._upload(active, content)

    def _upload(self, active: ActiveRequest, content: ContentRef) -> None:
        assert self._uploads is not None
        while not self._uploads.is_uploaded(content.digest):
            self._deadline = self._new_deadline(_SLICE_SECONDS)
            try:
                self._uploads.wait_until_uploaded(content.digest, self._deadline, content.source)
            except Busy:
                progress = self._uploads.get_progress(content.digest)
                if self._should_yield or progress is None:
                    raise
                done = min(99, percent(progress))
                state = NodePrewarmState(PrewarmState.STORING, done, "uploading to the image store")
                self._report_if_news(active, state)

    def _new_deadline(self, seconds: float) -> Deadline:
        """Return a deadline in `seconds`, cancelled at once if the current request has changed."""
        deadline = Deadline(seconds)
        if self._is_current_changed:
            deadline.cancel(_REQUESTS_CHANGED_MESSAGE)
        return deadline

    def _resolve(
        self,
        active: ActiveRequest,
        key: str,
        cache: PrewarmedCache,
        known: ResolvedCache | None,
        secrets: Secrets,
    ) -> ResolvedCache:
        """Resolve the cache with its credential, and record the result; the store then has its manifest."""
        deadline = self._deadline
        prepare = self._preparation
        if known:
            spec = parse_volume_parameters(known.access).spec
            resolution = prepare.resolve_spec(key, spec, known.digest, secrets, deadline)
        elif cache.pvc_name:
            record = self._prewarms.get_volume_of_pvc(active.request.namespace, cache.pvc_name)
            resolution = prepare.resolve_spec(key, record.spec, record.digest, secrets, deadline)
        else:
            parameters = parse_volume_parameters(cache.parameters)
            namespace = active.request.namespace
            with self._pins.keep_on_success(key):
                resolution = prepare.resolve_untrusted(key, namespace, parameters, secrets, deadline)
        resolved = ResolvedCache(
            resolution.digest,
            resolution.spec.to_context(),
            known.pin if known else self._pins.encode_pin(key),
        )
        active.resolved[key] = resolved
        self._save_resolved({**self._resolved, key: resolved})
        return resolved

    def _fill(self, active: ActiveRequest, content: ContentRef) -> None:
        while not self._store.find_sealed(content.digest):
            self._deadline = self._new_deadline(_SLICE_SECONDS)
            try:
                self._fills.prefetch(content, self._deadline)
            except Busy:
                # A running prefetch goes on; a preempted one waits for its next turn.
                if self._should_yield or content.digest not in self._fills.progress():
                    raise
                self._report_if_news(active, NodePrewarmState(PrewarmState.FILLING, self._percent(active)))

    def _percent(self, active: ActiveRequest) -> int:
        progress = self._fills.progress()
        in_progress = [
            progress[cache.digest]
            for key, cache in active.resolved.items()
            if key not in active.ready_keys and cache.digest in progress
        ]
        done = 100 * len(active.ready_keys) + sum(map(percent, in_progress))
        # 100 is for a request that is ready altogether.
        return min(99, done // len(active.request.caches))

    def _report_if_news(self, active: ActiveRequest, state: NodePrewarmState | None = None) -> None:
        """Report a changed state at once, and mere progress at most every `_REPORT_INTERVAL` seconds."""
        state = state or self._current_state(active)
        now = time.monotonic()
        is_news = (
            active.reported_state is None
            or active.reported_state.state is not state.state
            or (state.state is PrewarmState.FAILED and state != active.reported_state)
        )
        if state != active.reported_state and (is_news or now - active.reported_at > _REPORT_INTERVAL):
            active.reported_state = state
            active.reported_at = now
            self._prewarms.report_state(active.request, state)

    def _current_state(self, active: ActiveRequest) -> NodePrewarmState:
        if len(active.ready_keys) == len(active.request.caches):
            return NodePrewarmState(PrewarmState.READY, 100)
        if active.failures:
            return NodePrewarmState(
                PrewarmState.FAILED, self._percent(active), next(iter(active.failures.values())).message
            )
        return active.reported_state or NodePrewarmState(PrewarmState.PENDING, self._percent(active))
