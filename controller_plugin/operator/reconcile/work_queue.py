"""Names that want to be looked at, each by one thread at a time, now or later."""

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
    """Calls `look(name)`, which gives the seconds after which it wants to look again, None for not before `add`. Thread-safe.

    A name that is added while it is looked at is looked at once more.
    """

    def __init__(self, reconcile: Callable[[str], float | None], threads: int = 4) -> None:
        self._reconcile, self._threads = reconcile, threads
        self._changed = threading.Condition()
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._in_progress: set[str] = set()
        self._is_stopped = False

    def add(self, name: str, delay: float = 0.0) -> None:
        """Have `name` looked at in so many seconds, or sooner where it was to be sooner."""
        with self._changed:
            due = time.monotonic() + delay
            if due < self._due.get(name, float("inf")):
                self._due[name] = due
                heapq.heappush(self._heap, (due, name))
                self._changed.notify()

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Look for the block; its end waits for the looks under way."""
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
            again = self._reconcile_or_log(name)
            with self._changed:
                self._in_progress.discard(name)
                if name in self._due:
                    self._changed.notify()
            if again is not None:
                self.add(name, again)

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
        """The name that is due and that nobody looks at, or how long to wait for one."""
        now, aside, found = time.monotonic(), [], ""
        while self._heap and not found and self._heap[0][0] <= now:
            due, name = heapq.heappop(self._heap)
            if self._due.get(name) != due:
                continue  # it was looked at sooner
            if name in self._in_progress:
                aside.append((due, name))
            else:
                found = name
        for entry in aside:
            heapq.heappush(self._heap, entry)
        later = [due for due, name in self._heap[:1] if due > now]
        return found, later[0] - now if later else None

    def _reconcile_or_log(self, name: str) -> float | None:
        try:
            return self._reconcile(name)
        except DataCacheError as error:
            log.warning("a DataCache is looked at again", extra={"fields": {"object": name, "reason": error}})
        except Exception as error:
            # A foreign exception's text is not vetted for secrets.
            log.error(
                "a DataCache was not looked at",
                extra={"fields": {"object": name, "reason": type(error).__name__}},
            )
        return _RETRY_INTERVAL
