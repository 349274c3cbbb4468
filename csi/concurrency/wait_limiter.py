"""How many calls may wait at a time, so that other calls always find a free thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi.concurrency.deadline import Deadline
from csi.errors import Busy


class WaitLimiter:
    """All calls that wait: at most `seats` of them, so that other calls always find a free thread."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: set[tuple[str, Deadline]] = set()
        self._tracked: set[tuple[str, Deadline]] = set()
        self._close_reason = ""

    @contextmanager
    def slot(self, key: str, deadline: Deadline) -> Iterator[None]:
        """Hold a seat for the block; raises Busy at once when all are taken or the plugin is leaving."""
        with self._lock:
            if self._close_reason:
                raise Busy(self._close_reason)
            if len(self._waiting) >= self._max_waiting:
                raise Busy(f"{self._max_waiting} calls are waiting already; the work goes on, call again")
            self._waiting.add((key, deadline))
        try:
            yield
        finally:
            with self._lock:
                self._waiting.discard((key, deadline))

    @contextmanager
    def track(self, key: str, deadline: Deadline) -> Iterator[None]:
        """For the block, `cancel` reaches the call also on its way from one seat to the next."""
        with self._lock:
            self._tracked.add((key, deadline))
        try:
            yield
        finally:
            with self._lock:
                self._tracked.discard((key, deadline))

    def cancel(self, key: str, reason: str) -> None:
        """End the waiting of every call that is seated or present under `key`."""
        with self._lock:
            matching = {deadline for name, deadline in self._waiting | self._tracked if name == key}
        for deadline in matching:
            deadline.cancel(reason)

    def close(self, reason: str) -> None:
        """End all waiting, now and from now on (the plugin is leaving)."""
        with self._lock:
            self._close_reason = reason
            waiting = list(self._waiting)
        for _, deadline in waiting:
            deadline.cancel(reason)
