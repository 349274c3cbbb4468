"""So many bytes per second, for all who read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# What a reader that was held up may catch up with.
_MAX_BURST_SECONDS = 0.05


class RateLimiter:
    """`rate` bytes per second for all who take from it. Thread-safe."""

    def __init__(
        self,
        rate: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._lock = threading.Lock()
        self._next_free_at = clock()

    def wait_for(self, count: int, *other_limiters: RateLimiter) -> None:
        """Return when `count` more bytes may be read, by this pace and by `other_limiters`."""
        wait = max(pace._reserve(count) for pace in (self, *other_limiters))
        if wait > 0:
            self._sleep(wait)

    def _reserve(self, count: int) -> float:
        with self._lock:
            start = max(self._next_free_at, self._clock() - _MAX_BURST_SECONDS)
            self._next_free_at = start + count / self._rate
            return self._next_free_at - self._clock()
