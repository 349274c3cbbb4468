"""When a fill's readers may ask the origin: as many at once as it bears, and none while it asks for patience.

All readers of a fill share one `Flow`. What one of them meets (429, Retry-After, silence) holds for all.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from csi.errors import OriginThrottled, OriginTimedOut
from csi.images.widening import Widening

_LOOK_SECONDS = 0.1
LONGEST_RETRY_AFTER = 600.0
# So much longer than asked for, by chance: the readers of many nodes are not to come back in the same moment.
_JITTER = 0.1


class Flow:
    """`pause(seconds)` waits, and raises when the fill is to stop. Safe for any number of threads."""

    def __init__(self, widening: Widening, pause: Callable[[float], None]) -> None:
        self._widening, self.pause = widening, pause
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int]] = []
        self._asking = 0
        self._until = self._slowed_at = float("-inf")

    @property
    def readers(self) -> int:
        """How many should be reading now."""
        return self._widening.readers

    def look(self, fetched: int) -> None:
        """Take in that `fetched` bytes came so far in all; may change `readers`."""
        with self._changed:
            held = time.monotonic() < self._until
            self._widening.skip(fetched) if held else self._widening.look(fetched)
            self._changed.notify_all()

    @contextmanager
    def turns(self, rank: int, most: int = 1) -> Iterator[int]:
        """For the time of as many reads at once as it gives, from 1 to `most`.

        Where more wait than may ask, the lowest `rank` (a chunk's index) is first.
        An OriginThrottled or OriginTimedOut that leaves it halves the readers, once for all that asked at that time.
        """
        begun, count = self._enter((rank, threading.get_ident()), most)
        try:
            yield count
        except (OriginThrottled, OriginTimedOut):
            self._slow_down(begun)
            raise
        finally:
            with self._changed:
                self._asking -= count
                self._changed.notify_all()

    def hold(self, seconds: float) -> None:
        """Nobody asks for `seconds` (at most LONGEST_RETRY_AFTER) and a little longer."""
        wait = min(seconds, LONGEST_RETRY_AFTER) * random.uniform(1, 1 + _JITTER)
        with self._changed:
            self._until = max(self._until, time.monotonic() + wait)

    def one_by_one(self) -> None:
        """The origin cannot give parts of files: one reader from now on, and reads in the order of their ranks."""
        with self._changed:
            self._widening.one_by_one()

    def _enter(self, ticket: tuple[int, int], most: int) -> tuple[float, int]:
        with self._changed:
            self._waiting.append(ticket)
            try:
                while (wait := self._must_wait(ticket)) > 0:
                    self._changed.wait(wait)
                    self.pause(0)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
            count = max(1, min(most, self.readers - self._asking))
            self._asking += count
            return time.monotonic(), count

    def _must_wait(self, ticket: tuple[int, int]) -> float:
        left = self._until - time.monotonic()
        if left > 0:
            return min(left, _LOOK_SECONDS)
        return 0.0 if self._asking < self.readers and ticket == min(self._waiting) else _LOOK_SECONDS

    def _slow_down(self, begun: float) -> None:
        with self._changed:
            if begun > self._slowed_at:
                self._slowed_at = time.monotonic()
                self._widening.halve()
