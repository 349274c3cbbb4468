"""So many bytes per second, for all who read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# What a reader that was held up may catch up with.
_SAVED_SECONDS = 0.05


class Pace:
    """`rate` bytes per second for all who take from it. Thread-safe."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._guard = threading.Lock()
        self._free_at = clock()

    def take(self, count: int, *others: Pace) -> None:
        """Return when `count` more bytes may be read, by this pace and by `others`."""
        wait = max(pace._reserve(count) for pace in (self, *others))
        if wait > 0:
            self._sleep(wait)

    def _reserve(self, count: int) -> float:
        with self._guard:
            start = max(self._free_at, self._clock() - _SAVED_SECONDS)
            self._free_at = start + count / self._rate
            return self._free_at - self._clock()
