"""Which connection trickles: far slower than the others of its source for long, or slower than any that is of use."""

from __future__ import annotations

import threading

WINDOW_SECONDS = 20.0
"""So long a connection is read from before it is judged."""
FLOOR = 1024.0
"""Bytes a second below which a connection is of no use, whatever the others give."""
FRACTION = 0.05
"""What part of the usual rate of a connection is too little."""
_MEMORY = 10


class Tempo:
    """What the connections of one source usually give; for any number of threads. Seconds are those spent waiting for bytes."""

    def __init__(self) -> None:
        self._bytes, self._seconds = 0.0, 0.0
        self._guard = threading.Lock()

    def add(self, received: int, seconds: float) -> None:
        """A connection gave so many bytes in so many seconds. What is old counts less and less."""
        with self._guard:
            self._bytes += received
            self._seconds += seconds
            if self._seconds > _MEMORY * WINDOW_SECONDS:
                self._bytes, self._seconds = self._bytes / 2, self._seconds / 2

    @property
    def least(self) -> float:
        """The bytes a second below which a connection trickles."""
        return max(FLOOR, FRACTION * self._bytes / self._seconds if self._seconds else 0.0)


class Meter:
    """One connection's rate, window by window. For one thread."""

    def __init__(self, tempo: Tempo) -> None:
        self._tempo, self._received, self._seconds = tempo, 0, 0.0

    def trickles(self, received: int, seconds: float) -> bool:
        """Take in that `received` bytes came in `seconds`; whether this ends a window with too little in it."""
        self._received += received
        self._seconds += seconds
        if self._seconds < WINDOW_SECONDS:
            return False
        slow = self._received < self._tempo.least * self._seconds
        self.end()
        return slow

    def end(self) -> None:
        """The window ends here: it counts for what is usual."""
        self._tempo.add(self._received, self._seconds)
        self._received, self._seconds = 0, 0.0
