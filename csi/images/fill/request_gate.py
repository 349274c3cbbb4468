"""When a fill's readers may ask the origin: as many at once as it bears, and none while it asks for patience.

All readers of a fill share one `RequestGate`. What one of them meets (429, Retry-After, silence) holds for all.
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
from csi.images.fill.adaptive_concurrency import AdaptiveConcurrency

_WAIT_INTERVAL = 0.1
MAX_RETRY_AFTER = 600.0
# So much longer than asked for, by chance: the readers of many nodes are not to come back in the same moment.
_RETRY_JITTER = 0.1


class _Waiter(NamedTuple):
    rank: int
    thread: int
    is_batch: bool = False


class BatchPermits:
    """The turns of the one reader that asks for many files. Implements `csi.manifest.reader.RequestPermits`; `count` is how many of them it has."""

    def __init__(self, gate: RequestGate, on_bytes_received: Callable[[int], None]) -> None:
        self._gate, self.on_bytes_received, self.count, self.remaining = (
            gate,
            on_bytes_received,
            1,
            sys.maxsize,
        )

    def can_start(self, in_flight: int) -> bool:
        """See `Turns`: not while the origin asks for patience, and one fewer for each reader that waits."""
        return self._gate.resize(self, in_flight)

    def set_remaining(self, remaining: int) -> None:
        """See `Turns`."""
        self.remaining = max(1, remaining)
        if remaining < self.count:
            self._gate.resize(self, remaining)


class RequestGate:
    """`sleep(seconds)` waits, and raises when the fill is to stop. Safe for any number of threads."""

    def __init__(self, concurrency: AdaptiveConcurrency, sleep: Callable[[float], None]) -> None:
        self._concurrency, self.sleep = concurrency, sleep
        self._condition = threading.Condition()
        self._waiting: list[_Waiter] = []
        self._has_batch = False
        self._active = 0
        self._paused_until = self._slowed_at = float("-inf")

    @property
    def reader_limit(self) -> int:
        """How many should be reading now."""
        return self._concurrency.reader_limit

    def adapt(self, fetched_bytes: int) -> None:
        """Take in that `fetched_bytes` bytes came so far in all; may change `reader_limit`."""
        with self._condition:
            is_paused = time.monotonic() < self._paused_until
            self._concurrency.skip(fetched_bytes) if is_paused else self._concurrency.adapt(fetched_bytes)
            self._condition.notify_all()

    @contextmanager
    def permit(self, rank: int) -> Iterator[None]:
        """For the time of one read. Where more wait than may ask, the lowest `rank` (a chunk's index) is first.

        An OriginThrottled or OriginTimedOut that leaves it halves the readers, once for all that asked at that time.
        """
        acquired_at = self._acquire(_Waiter(rank, threading.get_ident()))
        try:
            yield
        except (OriginThrottled, OriginTimedOut):
            self._halve_readers(acquired_at)
            raise
        finally:
            self._release(1)

    @contextmanager
    def batch_permits(self, rank: int, on_bytes_received: Callable[[int], None]) -> Iterator[BatchPermits]:
        """As `permit`, for many reads at once: all that nobody else asks for, changing as it goes. One reader at a time has it.

        `on_bytes_received` is told of bytes as they come.
        """
        acquired_at = self._acquire(_Waiter(rank, threading.get_ident(), is_batch=True))
        permits = BatchPermits(self, on_bytes_received)
        try:
            yield permits
        except (OriginThrottled, OriginTimedOut):
            self._halve_readers(acquired_at)
            raise
        finally:
            self._release(permits.count, is_batch=True)

    def resize(self, permits: BatchPermits, in_flight: int) -> bool:
        """Set how many turns `permits` counts as; whether one request more may be begun by it."""
        self.sleep(0)
        with self._condition:
            if time.monotonic() < self._paused_until:
                allowed = in_flight
            else:
                others = self._active - permits.count + sum(not ticket.is_batch for ticket in self._waiting)
                allowed = max(1, min(permits.remaining, self.reader_limit - others))
            count = max(1, in_flight, allowed)
            if count != permits.count:
                self._active += count - permits.count
                permits.count = count
                self._condition.notify_all()
            return in_flight < allowed

    def _release(self, count: int, is_batch: bool = False) -> None:
        with self._condition:
            self._active -= count
            self._has_batch &= not is_batch
            self._condition.notify_all()

    def pause_all(self, seconds: float) -> None:
        """Nobody asks for `seconds` (at most LONGEST_RETRY_AFTER) and a little longer."""
        wait = min(seconds, MAX_RETRY_AFTER) * random.uniform(1, 1 + _RETRY_JITTER)
        with self._condition:
            self._paused_until = max(self._paused_until, time.monotonic() + wait)

    def limit_to_one_reader(self) -> None:
        """The origin cannot give parts of files: one reader from now on, and reads in the order of their ranks."""
        with self._condition:
            self._concurrency.limit_to_one_reader()

    def _acquire(self, waiter: _Waiter) -> float:
        with self._condition:
            self._waiting.append(waiter)
            try:
                while (wait := self._get_wait_seconds(waiter)) > 0:
                    self._condition.wait(wait)
                    self.sleep(0)
            finally:
                self._waiting.remove(waiter)
                self._condition.notify_all()
            self._active += 1
            self._has_batch |= waiter.is_batch
            return time.monotonic()

    def _get_wait_seconds(self, waiter: _Waiter) -> float:
        remaining = self._paused_until - time.monotonic()
        if remaining > 0:
            return min(remaining, _WAIT_INTERVAL)
        eligible = [other for other in self._waiting if not (other.is_batch and self._has_batch)]
        return (
            0.0
            if self._active < self.reader_limit and eligible and waiter == min(eligible)
            else _WAIT_INTERVAL
        )

    def _halve_readers(self, acquired_at: float) -> None:
        with self._condition:
            if acquired_at > self._slowed_at:
                self._slowed_at = time.monotonic()
                self._concurrency.halve()
