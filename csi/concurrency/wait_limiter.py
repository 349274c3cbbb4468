"""Waiting inside a call: for how long, until when the caller hangs up, and how many may do so at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from csi.errors import Busy


class Patience:
    """How long one call may wait. `cancel` ends it from another thread; `wake` makes the waiter look again."""

    def __init__(self, seconds: float) -> None:
        """`seconds` from now on the waiting is over."""
        self._until = time.monotonic() + seconds
        self._event = threading.Event()
        self.cancelled = ""

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for: cancelled or out of time."""
        return bool(self.cancelled) or time.monotonic() >= self._until

    def cancel(self, reason: str) -> None:
        """End the waiting; `reason` goes into the answer."""
        self.cancelled = self.cancelled or reason
        self._event.set()

    def wake(self) -> None:
        """Make `sleep` return, so that its caller looks at what it waits for."""
        self._event.set()

    def sleep(self) -> None:
        """Wait until woken, cancelled or out of time."""
        self._event.wait(max(0.0, self._until - time.monotonic()))
        if not self.cancelled:
            self._event.clear()


class WaitingRoom:
    """All calls that wait: at most `seats` of them, so that other calls always find a free thread."""

    def __init__(self, seats: int) -> None:
        self._seats = seats
        self._guard = threading.Lock()
        self._seated: set[tuple[str, Patience]] = set()
        self._present: set[tuple[str, Patience]] = set()
        self._closed = ""

    @contextmanager
    def seat(self, key: str, patience: Patience) -> Iterator[None]:
        """Hold a seat for the block; raises Busy at once when all are taken or the plugin is leaving."""
        with self._guard:
            if self._closed:
                raise Busy(self._closed)
            if len(self._seated) >= self._seats:
                raise Busy(f"{self._seats} calls are waiting already; the work goes on, call again")
            self._seated.add((key, patience))
        try:
            yield
        finally:
            with self._guard:
                self._seated.discard((key, patience))

    @contextmanager
    def present(self, key: str, patience: Patience) -> Iterator[None]:
        """For the block, `cancel` reaches the call also on its way from one seat to the next."""
        with self._guard:
            self._present.add((key, patience))
        try:
            yield
        finally:
            with self._guard:
                self._present.discard((key, patience))

    def cancel(self, key: str, reason: str) -> None:
        """End the waiting of every call that is seated or present under `key`."""
        with self._guard:
            chosen = {patience for name, patience in self._seated | self._present if name == key}
        for patience in chosen:
            patience.cancel(reason)

    def close(self, reason: str) -> None:
        """End all waiting, now and from now on (the plugin is leaving)."""
        with self._guard:
            self._closed = reason
            seated = list(self._seated)
        for _, patience in seated:
            patience.cancel(reason)
