"""Work queue of names, each handled by one thread at a time, now or later."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from csi.errors import DataCacheError

log = logging.getLogger("datacache.operator")

_RETRY_INTERVAL = 30.0


class WorkQueue:
    """Queue of names for calls of `reconcile(name)`. Thread-safe.

    `reconcile` returns the seconds until the next call, None to wait for `add`. A name that is added while it
    is handled is handled once more.
    """

    def __init__(self, reconcile: Callable[[str], float | None], threads: int = 4) -> None:
        self._reconcile, self._threads = reconcile, threads
        self._changed = threading.Condition()
        self._due: dict[str, float] = {}
        # The heap keeps entries that were rescheduled; one whose time is not in _due is stale.
        self._heap: list[tuple[float, str]] = []
        self._in_progress: set[str] = set()
        self._is_stopped = False

    def add(self, name: str, delay: float = 0.0) -> None:
        """Schedule `name` in `delay` seconds, unless it is scheduled earlier."""
        with self._changed:
            due = time.monotonic() + delay
            if due < self._due.get(name, float("inf")):
                self._due[name] = due
                heapq.heappush(self._heap, (due, name))
                self._changed.notify()

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Run the workers during the block; its end waits for calls in progress."""
        self._is_stopped = False
        threads = [
            threading.Thread(target=self._run_worker, name="operator", daemon=True)
            for _ in range(self._threads)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._is_stopped = True
                self._changed.notify_all()
            for thread in threads:
                thread.join()

    def _run_worker(self) -> None:
        while (name := self._wait_for_next()) is not None:
            delay = self._reconcile_or_log(name)
            with self._changed:
                self._in_progress.discard(name)
                # Added while in progress, when other workers had to postpone it.
                if name in self._due:
                    self._changed.notify()
            if delay is not None:
                self.add(name, delay)

    def _wait_for_next(self) -> str | None:
        with self._changed:
            while not self._is_stopped:
                name, wait = self._find_due()
                if name:
                    del self._due[name]
                    self._in_progress.add(name)
                    return name
                self._changed.wait(wait)
        return None

    def _find_due(self) -> tuple[str, float | None]:
        """Return the next due name that is not in progress, or how long to wait for one."""
        now, postponed, due_name = time.monotonic(), [], ""
        while self._heap and not due_name and self._heap[0][0] <= now:
            due, name = heapq.heappop(self._heap)
            if self._due.get(name) != due:
                continue  # rescheduled to an earlier time and handled since
            if name in self._in_progress:
                postponed.append((due, name))
            else:
                due_name = name
        for entry in postponed:
            heapq.heappush(self._heap, entry)
        upcoming = [due for due, name in self._heap[:1] if due > now]
        return due_name, upcoming[0] - now if upcoming else None

    def _reconcile_or_log(self, name: str) -> float | None:
        try:
            return self._reconcile(name)
        except DataCacheError as error:
            log.warning("reconcile failed; retrying", extra={"fields": {"object": name, "reason": error}})
        except Exception as error:
            # A foreign exception's text is not vetted for secrets.
            log.error(
                "reconcile failed; retrying",
                extra={"fields": {"object": name, "reason": type(error).__name__}},
            )
        return _RETRY_INTERVAL
