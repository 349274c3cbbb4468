"""Controller of DataCaches: watches them and their prewarm requests, and reconciles those that changed."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from controller_plugin.operator.data_cache_index import DataCacheIndex
from controller_plugin.operator.reconcile.reconciler import Reconciler
from controller_plugin.operator.reconcile.work_queue import WorkQueue
from csi.concurrency.background import background_thread
from csi.errors import DataCacheError
from csi.image_store.client import ImageStoreClient
from csi.registry.datacaches.data_caches import DataCacheRegistry
from csi.registry.prewarms.requests import PrewarmRequests

log = logging.getLogger("datacache.operator")

_COLLECT_INTERVAL = 3600.0


class DataCacheController:
    """Controller of the DataCaches in `registry`, which `index` follows. For one process at a time."""

    def __init__(
        self,
        registry: DataCacheRegistry,
        index: DataCacheIndex,
        prewarm_requests: PrewarmRequests,
        reconciler: Reconciler,
    ) -> None:
        self._registry, self._index, self._prewarm_requests = registry, index, prewarm_requests
        self._reconciler = reconciler
        self._queue = WorkQueue(self._reconcile)

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Reconcile during the block, in threads. Raises the errors of the registries if it cannot start."""
        # Another process may have led until now, and written states that a watch for specs does not report.
        self._index.resync(self._registry.find)
        with ExitStack() as running:
            running.enter_context(self._prewarm_requests.watch(self._queue.add))
            running.enter_context(self._index.notify_on_change(self._queue.add))
            # Not from the index, which leaves malformed DataCaches out. Requests of DataCaches that were
            # deleted while no operator ran are withdrawn.
            for name in self._registry.list_names() | self._prewarm_requests.list_data_caches():
                self._queue.add(name)
            running.enter_context(self._queue.run_in_background())
            yield

    def _reconcile(self, name: str) -> float | None:
        cache = self._index.get(name)
        if cache:
            self._registry.apply_labels(cache)
        return self._reconciler.reconcile(name)


class ImageStoreCollector:
    """Collector of images in the image store that no DataCache has referred to for `grace` seconds.

    For one process at a time.
    """

    def __init__(
        self,
        registry: DataCacheRegistry,
        image_store: ImageStoreClient,
        grace: float,
        scratch: Callable[[], Path],
    ) -> None:
        self._registry, self._image_store, self._grace, self._scratch = registry, image_store, grace, scratch

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Collect every hour during the block, in a thread."""
        with background_thread(self._run, "collecting"):
            yield

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(random.uniform(0.8 * _COLLECT_INTERVAL, _COLLECT_INTERVAL)):
            try:
                self.collect()
            except DataCacheError as error:
                log.warning("image store collection failed", extra={"fields": {"reason": error}})

    def collect(self) -> list[str]:
        """Remove unreferenced images once, and return their digests.

        Current and future images of DataCaches stay, so the registry must list all of them.
        """
        if not self._image_store.is_configured:
            return []
        referenced = self._registry.list_digests() | {
            announcement.digest for announcement in self._image_store.list_announcements()
        }
        started = time.monotonic()
        removed = self._image_store.collect(referenced, self._grace, self._scratch())
        if removed:
            log.info(
                "images removed from the image store",
                extra={"fields": {"images": len(removed), "seconds": round(time.monotonic() - started, 1)}},
            )
        return removed
