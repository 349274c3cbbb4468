"""How many calls may wait at a time, so that other calls always find a free thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi.concurrency.deadline import Patience
from csi.errors import Busy


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
