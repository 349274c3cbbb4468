"""The operator at work: follows DataCaches and what nodes say of them, and has each looked at when there may be something to do."""

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
    """Moves all DataCaches of `caches`, which `known` follows. For one process at a time."""

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
        """For the block, do so, from threads of its own. Raises as DataCaches and PrewarmRequests, where nothing has begun."""
        # Another process may have led until now.
        self._index.resync(self._registry.find)
        with ExitStack() as at_work:
            at_work.enter_context(self._prewarm_requests.watch(self._queue.add))
            at_work.enter_context(self._index.notify_on_change(self._queue.add))
            for cache in self._index.list_all():
                self._queue.add(cache.name)
            at_work.enter_context(self._queue.run_in_background())
            yield

    def _reconcile(self, name: str) -> float | None:
        cache = self._index.get(name)
        if cache:
            self._registry.apply_labels(cache)
        return self._reconciler.reconcile(name)


class ImageStoreCollector:
    """Takes from the image store what no DataCache of `caches` wants any more, after a grace of so many seconds. For one process at a time."""

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
        """For the block, look every hour, from a thread of its own."""
        with background_thread(self._run, "collecting"):
            yield

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(random.uniform(0.8 * _COLLECT_INTERVAL, _COLLECT_INTERVAL)):
            try:
                self.collect()
            except DataCacheError as error:
                log.warning("the image store was not looked through", extra={"fields": {"reason": error}})

    def collect(self) -> list[str]:
        """Look once; the digests of what is gone. What a DataCache holds or is to hold stays; so it must be all of them that are asked."""
        if not self._image_store.is_configured:
            return []
        referenced = self._registry.list_digests() | {
            announced.digest for announced in self._image_store.list_announcements()
        }
        began = time.monotonic()
        removed = self._image_store.collect(referenced, self._grace, self._scratch())
        if removed:
            log.info(
                "images removed from the image store",
                extra={"fields": {"images": len(removed), "s": round(time.monotonic() - began, 1)}},
            )
        return removed
