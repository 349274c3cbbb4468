"""Which connection trickles: far slower than the others of its source for long, or slower than any that is of use."""

from __future__ import annotations

import threading

MEASURING_WINDOW = 20.0
"""So long a connection is read from before it is judged."""
MIN_RATE = 1024.0
"""Bytes a second below which a connection is of no use, whatever the others give."""
MIN_RATE_FRACTION = 0.05
"""What part of the usual rate of a connection is too little."""
_HISTORY_WINDOWS = 10


class ThroughputBaseline:
    """What the connections of one source usually give; for any number of threads. Seconds are those spent waiting for bytes."""

    def __init__(self) -> None:
        self._bytes, self._seconds = 0.0, 0.0
        self._lock = threading.Lock()

    def add(self, received: int, seconds: float) -> None:
        """A connection gave so many bytes in so many seconds. What is old counts less and less."""
        with self._lock:
            self._bytes += received
            self._seconds += seconds
            if self._seconds > _HISTORY_WINDOWS * MEASURING_WINDOW:
                self._bytes, self._seconds = self._bytes / 2, self._seconds / 2

    @property
    def min_rate(self) -> float:
        """The bytes a second below which a connection trickles."""
        return max(MIN_RATE, MIN_RATE_FRACTION * self._bytes / self._seconds if self._seconds else 0.0)


class ThroughputMeter:
    """One connection's rate, window by window. For one thread."""

    def __init__(self, baseline: ThroughputBaseline) -> None:
        self._baseline, self._received, self._seconds = baseline, 0, 0.0

    def is_too_slow(self, received: int, seconds: float) -> bool:
        """Take in that `received` bytes came in `seconds`; whether this ends a window with too little in it."""
        self._received += received
        self._seconds += seconds
        if self._seconds < MEASURING_WINDOW:
            return False
        is_slow = self._received < self._baseline.min_rate * self._seconds
        self.end_window()
        return is_slow

    def end_window(self) -> None:
        """The window ends here: it counts for what is usual."""
        self._baseline.add(self._received, self._seconds)
        self._received, self._seconds = 0, 0.0
