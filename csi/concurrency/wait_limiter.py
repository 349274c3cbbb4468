"""Limit on the number of calls that wait at a time, so that other calls always find a free thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi.concurrency.deadline import Deadline
from csi.errors import Busy


class WaitLimiter:
    """Limiter that lets at most `max_waiting` calls wait at a time. Thread-safe."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: set[tuple[str, Deadline]] = set()
        self._tracked: set[tuple[str, Deadline]] = set()
        self._close_reason = ""

    @contextmanager
    def slot(self, key: str, deadline: Deadline) -> Iterator[None]:
        """Hold a waiting slot for the block; raises Busy at once if all are taken or after `close`."""
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
        """Let `cancel` reach the call during the block, even while it holds no slot between two waits."""
        with self._lock:
            self._tracked.add((key, deadline))
        try:
            yield
        finally:
            with self._lock:
                self._tracked.discard((key, deadline))

    def cancel(self, key: str, reason: str) -> None:
        """End the waiting of every call with a slot or tracked under `key`."""
        with self._lock:
            matching = {deadline for name, deadline in self._waiting | self._tracked if name == key}
        for deadline in matching:
            deadline.cancel(reason)

    def close(self, reason: str) -> None:
        """End all waiting, now and in the future, because the plugin is shutting down."""
        with self._lock:
            self._close_reason = reason
            waiting = list(self._waiting)
        for _, deadline in waiting:
            deadline.cancel(reason)
