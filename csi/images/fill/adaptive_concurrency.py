"""Number of connections of a fill, chosen by measured throughput (AIMD).

A near origin is saturated by a few; one that is far, or limits each connection, needs many. So a fill starts
with a few and doubles them while that is considerably faster. From then on it occasionally tries one more,
and halves them if the origin throttles or times out (additive increase, multiplicative decrease).
"""

from __future__ import annotations

import time
from collections.abc import Callable

INITIAL_READERS = 4
# Seconds.
_MEASURING_WINDOW = 0.5
# Readers finish at random times; a window in which each ends fewer reads than this measures noise.
_MIN_READS_PER_READER = 2
# Doubling the readers must increase the rate by this factor to be continued.
_MIN_SPEEDUP = 1.25
# One reader more changes the rate by little, so it is measured over several windows. It is kept if it brings
# at least half of what an average reader brings.
_WINDOWS_PER_PROBE = 4
_MIN_PROBE_SHARE = 0.5
# Windows between two attempts to add a reader: doubled after each failed attempt, up to this.
_MAX_PROBE_BACKOFF = 16
# Seconds for which a concurrency that the origin throttled is not tried again; doubled each time.
_INITIAL_CEILING_TTL = 30.0
_MAX_CEILING_TTL = 600.0


class AdaptiveConcurrency:
    """Controller of `reader_limit`, the number of readers that should be reading: 1 to `max_readers`.

    Not thread-safe. `fetched_bytes` of its methods is the total so far; a window has to cover reads of
    `chunk_bytes`.
    """

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
        """Record `fetched_bytes`, the total so far, and change `reader_limit` if a measuring window ends."""
        seconds = self._clock() - self._window_start
        window_bytes = fetched_bytes - self._bytes_at_window_start
        windows = 1 if self._is_doubling else _WINDOWS_PER_PROBE
        if (
            seconds < windows * _MEASURING_WINDOW
            or window_bytes < _MIN_READS_PER_READER * self.reader_limit * self._chunk_bytes
        ):
            return
        if self._is_doubling:
            self._double(window_bytes / seconds)
        else:
            self._probe_one_more(window_bytes / seconds)
        self.skip(fetched_bytes)

    def skip(self, fetched_bytes: int) -> None:
        """Start a new window without judging the last, for example after a pause."""
        self._window_start, self._bytes_at_window_start = self._clock(), fetched_bytes

    def halve(self) -> None:
        """Halve `reader_limit` because the origin throttles.

        The old limit is avoided for a while, longer each time.
        """
        self._ceiling, self._ceiling_until = max(1, self.reader_limit - 1), self._clock() + self._ceiling_ttl
        self._ceiling_ttl = min(_MAX_CEILING_TTL, 2 * self._ceiling_ttl)
        self._settle_at(max(1, self.reader_limit // 2), 0.0)

    def limit_to_one_reader(self) -> None:
        """Use one reader from now on, for an origin without range requests."""
        self._max_readers = 1
        self._settle_at(1, 0.0)

    def _double(self, rate: float) -> None:
        # Doubling did not pay: go back to the number before it.
        if rate < _MIN_SPEEDUP * self._previous_rate:
            self._settle_at(self._previous_limit, self._previous_rate)
        elif self.reader_limit == self._max_readers:
            self._settle_at(self._max_readers, rate)
        else:
            self._previous_limit, self._previous_rate = self.reader_limit, rate
            self.reader_limit = min(self._max_readers, 2 * self.reader_limit)

    def _settle_at(self, readers: int, rate: float) -> None:
        self.reader_limit = readers
        self._previous_limit = readers
        self._previous_rate = rate
        self._is_doubling = False
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
            self.reader_limit = self._previous_limit
            self._probe_backoff = min(_MAX_PROBE_BACKOFF, 2 * self._probe_backoff)
        self._windows_until_probe = self._probe_backoff

    @property
    def _current_max(self) -> int:
        return (
            min(self._max_readers, self._ceiling)
            if self._clock() < self._ceiling_until
            else self._max_readers
        )
