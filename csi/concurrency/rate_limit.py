"""A limit in bytes per second, shared by several readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# Delayed readers may catch up by this much, so that short scheduling delays do not lower the rate.
_MAX_BURST_SECONDS = 0.05


class RateLimiter:
    """Limit of `rate` bytes per second, shared by all its users. Thread-safe."""

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
        """Wait until `count` more bytes may be read under this limiter and `other_limiters`."""
        wait = max(limiter._reserve(count) for limiter in (self, *other_limiters))
        if wait > 0:
            self._sleep(wait)

    def _reserve(self, count: int) -> float:
        with self._lock:
            start = max(self._next_free_at, self._clock() - _MAX_BURST_SECONDS)
            self._next_free_at = start + count / self._rate
            return self._next_free_at - self._clock()
