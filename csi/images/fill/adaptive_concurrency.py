"""How many connections a fill reads over: as many as the origin bears, and no more than bring more.

A near origin is used up by a few; one that is far, or gives each connection its share, by many. So a fill begins with a
few and doubles them while that makes it a good deal faster; from then on it tries one more now and then, and halves
them when the origin asks for patience or stays silent (additive increase, multiplicative decrease).
"""

from __future__ import annotations

import time
from collections.abc import Callable

FEW = 4
_WINDOW_SECONDS = 0.5
# A window too short to see each reader end this many reads would judge by chance.
_READS_EACH = 2
_WORTH_IT = 1.25
# One more brings little: it is judged over more windows, so that chance does not decide, and by half of its fair share.
_WINDOWS_OF_ONE_MORE = 4
_SHARE = 0.5
_LONGEST_WAIT = 16
_CEILING_SECONDS = 30.0
_LONGEST_CEILING = 600.0


class Widening:
    """Judges by `fetched` bytes; `readers`, at most `most` and at least 1, is how many should be reading now. For one thread at a time."""

    def __init__(self, most: int, chunk_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.readers = min(FEW, most)
        self._most, self._chunk_bytes, self._clock = most, chunk_bytes, clock
        self._before, self._rate = 0, 0.0
        self._doubling = True
        self._wait = self._patience = 1
        self._ceiling, self._ceiling_seconds, self._ceiling_until = most, _CEILING_SECONDS, 0.0
        self._since, self._fetched = clock(), 0

    def look(self, fetched: int) -> None:
        """Take in that `fetched` bytes came so far, and change `readers` where a window ends."""
        seconds, more = self._clock() - self._since, fetched - self._fetched
        windows = 1 if self._doubling else _WINDOWS_OF_ONE_MORE
        if seconds < windows * _WINDOW_SECONDS or more < _READS_EACH * self.readers * self._chunk_bytes:
            return
        self._double(more / seconds) if self._doubling else self._try_one_more(more / seconds)
        self.skip(fetched)

    def skip(self, fetched: int) -> None:
        """Do not judge by the time until now: the fill was held up."""
        self._since, self._fetched = self._clock(), fetched

    def halve(self) -> None:
        """The origin asks for patience: half as many, and for a while (longer each time) not as many again."""
        self._ceiling, self._ceiling_until = max(1, self.readers - 1), self._clock() + self._ceiling_seconds
        self._ceiling_seconds = min(_LONGEST_CEILING, 2 * self._ceiling_seconds)
        self._settle(max(1, self.readers // 2), 0.0)

    def one_by_one(self) -> None:
        """One reader from now on: the origin cannot give parts of files."""
        self._most = 1
        self._settle(1, 0.0)

    def _double(self, rate: float) -> None:
        if rate < _WORTH_IT * self._rate:
            self._settle(self._before, self._rate)
        elif self.readers == self._most:
            self._settle(self._most, rate)
        else:
            self._before, self._rate = self.readers, rate
            self.readers = min(self._most, 2 * self.readers)

    def _settle(self, readers: int, rate: float) -> None:
        self.readers, self._before, self._rate, self._doubling = readers, readers, rate, False
        self._wait = self._patience = 1

    def _try_one_more(self, rate: float) -> None:
        if self.readers > self._before:
            self._judge_one_more(rate)
            return
        self._rate = rate
        self._wait -= 1
        if self._wait < 0 and self.readers < self._bound:
            self.readers += 1

    def _judge_one_more(self, rate: float) -> None:
        if rate >= self._rate * (1 + _SHARE / self._before):
            self._before, self._rate, self._patience = self.readers, rate, 1
        else:
            self.readers, self._patience = self._before, min(_LONGEST_WAIT, 2 * self._patience)
        self._wait = self._patience

    @property
    def _bound(self) -> int:
        return min(self._most, self._ceiling) if self._clock() < self._ceiling_until else self._most
