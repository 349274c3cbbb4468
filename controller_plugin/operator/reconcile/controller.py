"""The operator at work: follows DataCaches and what nodes say of them, and has each looked at when there may be something to do."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from controller_plugin.operator.data_cache_index import KnownCaches
from controller_plugin.operator.reconcile.reconciler import Reconciler
from controller_plugin.operator.reconcile.work_queue import WorkQueue
from csi.concurrency.background import beside
from csi.errors import DataCacheError
from csi.image_store.client import StoredImages
from csi.registry.datacaches.data_caches import DataCaches
from csi.registry.prewarms.requests import PrewarmOrders

log = logging.getLogger("datacache.operator")

_COLLECT_SECONDS = 3600.0


class Operator:
    """Moves all DataCaches of `caches`, which `known` follows. For one process at a time."""

    def __init__(
        self,
        caches: DataCaches,
        known: KnownCaches,
        orders: PrewarmOrders,
        reconciler: Reconciler,
    ) -> None:
        self._caches, self._known, self._orders = caches, known, orders
        self._reconciler = reconciler
        self._queue = WorkQueue(self._look)

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the block, do so, from threads of its own. Raises as DataCaches and PrewarmOrders, where nothing has begun."""
        # Another process may have led until now.
        self._known.look(self._caches.find)
        with ExitStack() as at_work:
            at_work.enter_context(self._orders.watch(self._queue.add))
            at_work.enter_context(self._known.telling(self._queue.add))
            for cache in self._known.all():
                self._queue.add(cache.name)
            at_work.enter_context(self._queue.running())
            yield

    def _look(self, name: str) -> float | None:
        cache = self._known.named(name)
        if cache:
            self._caches.label(cache)
        return self._reconciler.look(name)


class Collector:
    """Takes from the image store what no DataCache of `caches` wants any more, after a grace of so many seconds. For one process at a time."""

    def __init__(self, caches: DataCaches, stored: StoredImages, grace: float, scratch: Callable[[], Path]) -> None:
        self._caches, self._stored, self._grace, self._scratch = caches, stored, grace, scratch

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the block, look every hour, from a thread of its own."""
        with beside(self._run, "collecting"):
            yield

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(random.uniform(0.8 * _COLLECT_SECONDS, _COLLECT_SECONDS)):
            try:
                self.collect()
            except DataCacheError as error:
                log.warning("the image store was not looked through", extra={"fields": {"reason": error}})

    def collect(self) -> list[str]:
        """Look once; the digests of what is gone. What a DataCache holds or is to hold stays; so it must be all of them that are asked."""
        if not self._stored.there:
            return []
        wanted = self._caches.digests() | {announced.digest for announced in self._stored.announced()}
        began = time.monotonic()
        gone = self._stored.collect(wanted, self._grace, self._scratch())
        if gone:
            log.info("images removed from the image store", extra={"fields": {"images": len(gone), "s": round(time.monotonic() - began, 1)}})
        return gone
