"""How many connections a fill reads over: more, as long as more bring more.

A near origin is used up by a few; one that is far, or gives each connection its share, by many. So a fill begins with a
few and doubles them while that makes it a good deal faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FEW = 4
_WINDOW_SECONDS = 0.5
# A window too short to see each reader end this many reads would judge by chance.
_READS_EACH = 2
_WORTH_IT = 1.25


class Widening:
    """Judges by `fetched` bytes; `readers`, at most `most`, is how many should be reading now. For one thread."""

    def __init__(self, most: int, chunk_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.readers = min(FEW, most)
        self._most, self._chunk_bytes, self._clock = most, chunk_bytes, clock
        self._before, self._rate = 0, 0.0
        self._since, self._fetched = clock(), 0
        self._settled = self.readers == most

    def look(self, fetched: int) -> None:
        """Take in that `fetched` bytes came so far, and change `readers` where a window ends."""
        seconds, more = self._clock() - self._since, fetched - self._fetched
        if self._settled or seconds < _WINDOW_SECONDS or more < _READS_EACH * self.readers * self._chunk_bytes:
            return
        self._judge(more / seconds)
        self._since, self._fetched = self._clock(), fetched

    def _judge(self, rate: float) -> None:
        if rate < _WORTH_IT * self._rate:
            self.readers, self._settled = self._before, True
            return
        self._before, self._rate = self.readers, rate
        self.readers = min(self._most, 2 * self.readers)
        self._settled = self.readers == self._before
