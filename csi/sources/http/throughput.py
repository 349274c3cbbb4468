"""Detection of stalled connections: far slower than others of the source, or slower than any useful one."""

from __future__ import annotations

import threading

MEASURING_WINDOW = 20.0
"""Seconds of reading after which a connection is judged."""
MIN_RATE = 1024.0
"""Bytes per second below which a connection is useless, however slow the others are."""
MIN_RATE_FRACTION = 0.05
"""Fraction of the usual rate of a connection below which one is too slow."""
# The baseline covers about this many windows of reading; then old measurements are halved.
_HISTORY_WINDOWS = 10


class ThroughputBaseline:
    """The usual rate of the connections of one source.

    Thread-safe. Only seconds spent waiting for bytes count.
    """

    def __init__(self) -> None:
        self._bytes, self._seconds = 0.0, 0.0
        self._lock = threading.Lock()

    def add(self, received: int, seconds: float) -> None:
        """Add the bytes that one connection received in some seconds.

        Old measurements count less and less.
        """
        with self._lock:
            self._bytes += received
            self._seconds += seconds
            if self._seconds > _HISTORY_WINDOWS * MEASURING_WINDOW:
                self._bytes, self._seconds = self._bytes / 2, self._seconds / 2

    @property
    def min_rate(self) -> float:
        """Bytes per second below which a connection is too slow."""
        return max(MIN_RATE, MIN_RATE_FRACTION * self._bytes / self._seconds if self._seconds else 0.0)


class ThroughputMeter:
    """The rate of one connection, by windows. For one thread."""

    def __init__(self, baseline: ThroughputBaseline) -> None:
        self._baseline, self._received, self._seconds = baseline, 0, 0.0

    def is_too_slow(self, received: int, seconds: float) -> bool:
        """Add `received` bytes in `seconds`; return whether this ends a window that was too slow."""
        self._received += received
        self._seconds += seconds
        if self._seconds < MEASURING_WINDOW:
            return False
        is_slow = self._received < self._baseline.min_rate * self._seconds
        self.end_window()
        return is_slow

    def end_window(self) -> None:
        """End the window early and add it to the baseline."""
        self._baseline.add(self._received, self._seconds)
        self._received, self._seconds = 0, 0.0
