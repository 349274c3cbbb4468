"""When a fill's readers may ask the origin: as many at once as it bears, and none while it asks for patience.

All readers of a fill share one `Flow`. What one of them meets (429, Retry-After, silence) holds for all.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from csi.errors import OriginThrottled, OriginTimedOut
from csi.images.fill.adaptive_concurrency import Widening

_LOOK_SECONDS = 0.1
LONGEST_RETRY_AFTER = 600.0
# So much longer than asked for, by chance: the readers of many nodes are not to come back in the same moment.
_JITTER = 0.1


class _Ticket(NamedTuple):
    rank: int
    thread: int
    many: bool = False


class ManyTurns:
    """The turns of the one reader that asks for many files. Implements `csi.manifest.reader.Turns`; `count` is how many of them it has."""

    def __init__(self, flow: Flow, came: Callable[[int], None]) -> None:
        self._flow, self.came, self.count, self.left = flow, came, 1, sys.maxsize

    def may_ask(self, under_way: int) -> bool:
        """See `Turns`: not while the origin asks for patience, and one fewer for each reader that waits."""
        return self._flow.share(self, under_way)

    def needs(self, left: int) -> None:
        """See `Turns`."""
        self.left = max(1, left)
        if left < self.count:
            self._flow.share(self, left)


class Flow:
    """`pause(seconds)` waits, and raises when the fill is to stop. Safe for any number of threads."""

    def __init__(self, widening: Widening, pause: Callable[[float], None]) -> None:
        self._widening, self.pause = widening, pause
        self._changed = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._many = False
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
    def turn(self, rank: int) -> Iterator[None]:
        """For the time of one read. Where more wait than may ask, the lowest `rank` (a chunk's index) is first.

        An OriginThrottled or OriginTimedOut that leaves it halves the readers, once for all that asked at that time.
        """
        begun = self._enter(_Ticket(rank, threading.get_ident()))
        try:
            yield
        except (OriginThrottled, OriginTimedOut):
            self._slow_down(begun)
            raise
        finally:
            self._give_back(1)

    @contextmanager
    def turns(self, rank: int, came: Callable[[int], None]) -> Iterator[ManyTurns]:
        """As `turn`, for many reads at once: all that nobody else asks for, changing as it goes. One reader at a time has it.

        `came` is told of bytes as they come.
        """
        begun = self._enter(_Ticket(rank, threading.get_ident(), many=True))
        turns = ManyTurns(self, came)
        try:
            yield turns
        except (OriginThrottled, OriginTimedOut):
            self._slow_down(begun)
            raise
        finally:
            self._give_back(turns.count, many=True)

    def share(self, turns: ManyTurns, under_way: int) -> bool:
        """Set how many turns `turns` counts as; whether one request more may be begun by it."""
        self.pause(0)
        with self._changed:
            if time.monotonic() < self._until:
                share = under_way
            else:
                others = self._asking - turns.count + sum(not ticket.many for ticket in self._waiting)
                share = max(1, min(turns.left, self.readers - others))
            count = max(1, under_way, share)
            if count != turns.count:
                self._asking += count - turns.count
                turns.count = count
                self._changed.notify_all()
            return under_way < share

    def _give_back(self, count: int, many: bool = False) -> None:
        with self._changed:
            self._asking -= count
            self._many &= not many
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

    def _enter(self, ticket: _Ticket) -> float:
        with self._changed:
            self._waiting.append(ticket)
            try:
                while (wait := self._must_wait(ticket)) > 0:
                    self._changed.wait(wait)
                    self.pause(0)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
            self._asking += 1
            self._many |= ticket.many
            return time.monotonic()

    def _must_wait(self, ticket: _Ticket) -> float:
        left = self._until - time.monotonic()
        if left > 0:
            return min(left, _LOOK_SECONDS)
        able = [other for other in self._waiting if not (other.many and self._many)]
        return 0.0 if self._asking < self.readers and able and ticket == min(able) else _LOOK_SECONDS

    def _slow_down(self, begun: float) -> None:
        with self._changed:
            if begun > self._slowed_at:
                self._slowed_at = time.monotonic()
                self._widening.halve()
