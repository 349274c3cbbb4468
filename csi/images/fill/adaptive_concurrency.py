"""How many connections a fill reads over: as many as the origin bears, and no more than bring more.

A near origin is used up by a few; one that is far, or gives each connection its share, by many. So a fill begins with a
few and doubles them while that makes it a good deal faster; from then on it tries one more now and then, and halves
them when the origin asks for patience or stays silent (additive increase, multiplicative decrease).
"""

from __future__ import annotations

import time
from collections.abc import Callable

INITIAL_READERS = 4
_MEASURING_WINDOW = 0.5
# A window too short to see each reader end this many reads would judge by chance.
_MIN_READS_PER_READER = 2
_MIN_SPEEDUP = 1.25
# One more brings little: it is judged over more windows, so that chance does not decide, and by half of its fair share.
_WINDOWS_PER_PROBE = 4
_MIN_PROBE_SHARE = 0.5
_MAX_PROBE_BACKOFF = 16
_INITIAL_CEILING_TTL = 30.0
_MAX_CEILING_TTL = 600.0


class AdaptiveConcurrency:
    """Judges by `fetched` bytes; `reader_limit`, at most `most` and at least 1, is how many should be reading now. For one thread at a time."""

    def __init__(
        self, max_readers: int, chunk_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reader_limit = min(INITIAL_READERS, max_readers)
        self._max_readers, self._chunk_bytes, self._clock = max_readers, chunk_bytes, clock
        self._previous_limit, self._previous_rate = 0, 0.0
        self._is_doubling = True
        self._windows_until_probe = self._probe_backoff = 1
        self._ceiling, self._ceiling_ttl, self._ceiling_until = max_readers, _INITIAL_CEILING_TTL, 0.0
        self._window_start, self._bytes_at_window_start = clock(), 0

    def adapt(self, fetched_bytes: int) -> None:
        """Take in that `fetched_bytes` bytes came so far, and change `reader_limit` where a window ends."""
        seconds, window_bytes = (
            self._clock() - self._window_start,
            fetched_bytes - self._bytes_at_window_start,
        )
        windows = 1 if self._is_doubling else _WINDOWS_PER_PROBE
        if (
            seconds < windows * _MEASURING_WINDOW
            or window_bytes < _MIN_READS_PER_READER * self.reader_limit * self._chunk_bytes
        ):
            return
        self._double(window_bytes / seconds) if self._is_doubling else self._probe_one_more(
            window_bytes / seconds
        )
        self.skip(fetched_bytes)

    def skip(self, fetched_bytes: int) -> None:
        """Do not judge by the time until now: the fill was held up."""
        self._window_start, self._bytes_at_window_start = self._clock(), fetched_bytes

    def halve(self) -> None:
        """The origin asks for patience: half as many, and for a while (longer each time) not as many again."""
        self._ceiling, self._ceiling_until = max(1, self.reader_limit - 1), self._clock() + self._ceiling_ttl
        self._ceiling_ttl = min(_MAX_CEILING_TTL, 2 * self._ceiling_ttl)
        self._settle_at(max(1, self.reader_limit // 2), 0.0)

    def limit_to_one_reader(self) -> None:
        """One reader from now on: the origin cannot give parts of files."""
        self._max_readers = 1
        self._settle_at(1, 0.0)

    def _double(self, rate: float) -> None:
        if rate < _MIN_SPEEDUP * self._previous_rate:
            self._settle_at(self._previous_limit, self._previous_rate)
        elif self.reader_limit == self._max_readers:
            self._settle_at(self._max_readers, rate)
        else:
            self._previous_limit, self._previous_rate = self.reader_limit, rate
            self.reader_limit = min(self._max_readers, 2 * self.reader_limit)

    def _settle_at(self, readers: int, rate: float) -> None:
        self.reader_limit, self._previous_limit, self._previous_rate, self._is_doubling = (
            readers,
            readers,
            rate,
            False,
        )
        self._windows_until_probe = self._probe_backoff = 1

    def _probe_one_more(self, rate: float) -> None:
        if self.reader_limit > self._previous_limit:
            self._evaluate_probe(rate)
            return
        self._previous_rate = rate
        self._windows_until_probe -= 1
        if self._windows_until_probe < 0 and self.reader_limit < self._current_max:
            self.reader_limit += 1

    def _evaluate_probe(self, rate: float) -> None:
        if rate >= self._previous_rate * (1 + _MIN_PROBE_SHARE / self._previous_limit):
            self._previous_limit, self._previous_rate, self._probe_backoff = self.reader_limit, rate, 1
        else:
            self.reader_limit, self._probe_backoff = (
                self._previous_limit,
                min(_MAX_PROBE_BACKOFF, 2 * self._probe_backoff),
            )
        self._windows_until_probe = self._probe_backoff

    @property
    def _current_max(self) -> int:
        return (
            min(self._max_readers, self._ceiling)
            if self._clock() < self._ceiling_until
            else self._max_readers
        )
