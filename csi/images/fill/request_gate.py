"""Admission of a fill's requests: as many at once as the origin sustains, and none while it asks to back off.

All readers of a fill share one `RequestGate`. What one of them meets (429, Retry-After, a timeout) holds for
all.
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
from csi.manifest.reader import RequestPermits

# Seconds after which a waiting reader checks whether the fill was stopped.
_WAIT_INTERVAL = 0.1
# Seconds; a longer Retry-After is cut to this, so that one odd answer cannot stall a fill for hours.
MAX_RETRY_AFTER = 600.0
# Up to this share is added at random, so that the readers of many nodes do not return at the same moment.
_RETRY_JITTER = 0.1


class _Waiter(NamedTuple):
    rank: int
    thread: int
    is_batch: bool = False


class BatchPermits(RequestPermits):
    """Permits of the one reader that requests many files at once; `count` is how many it has."""

    def __init__(self, gate: RequestGate, on_bytes_received: Callable[[int], None]) -> None:
        self._gate, self._count_bytes = gate, on_bytes_received
        # No more permits than `max_answers` are held: that many answers are still to come.
        self.count, self.max_answers = 1, sys.maxsize

    def on_bytes_received(self, count: int) -> None:
        self._count_bytes(count)

    def can_start(self, in_flight: int) -> bool:
        """Return whether one more request may start.

        None may start during a pause; each waiting single reader takes one permit from the batch.
        """
        return self._gate.resize_batch(self, in_flight)

    def set_remaining(self, remaining: int) -> None:
        self.max_answers = max(1, remaining)
        if remaining < self.count:
            # Give the surplus back. All that remain count as in flight, so that none of theirs is taken.
            self._gate.resize_batch(self, remaining)


class RequestGate:
    """Permits for the requests of all readers of a fill. Thread-safe.

    `sleep(seconds)` waits, and raises if the fill is to stop.
    """

    def __init__(self, concurrency: AdaptiveConcurrency, sleep: Callable[[float], None]) -> None:
        self._concurrency, self.sleep = concurrency, sleep
        # Guards all fields below and `_concurrency`, which is not thread-safe itself.
        self._condition = threading.Condition()
        self._waiting: list[_Waiter] = []
        self._has_batch = False
        self._active = 0
        self._paused_until = self._slowed_at = float("-inf")

    @property
    def reader_limit(self) -> int:
        """How many readers should be reading now."""
        return self._concurrency.reader_limit

    def adapt(self, fetched_bytes: int) -> None:
        """Record that `fetched_bytes` have arrived in total; may change `reader_limit`."""
        with self._condition:
            # During a pause nothing arrives, which must not count as slow.
            is_paused = time.monotonic() < self._paused_until
            if is_paused:
                self._concurrency.skip(fetched_bytes)
            else:
                self._concurrency.adapt(fetched_bytes)
            self._condition.notify_all()

    @contextmanager
    def permit(self, rank: int) -> Iterator[None]:
        """Hold a permit for one read.

        If more readers wait than may read, the lowest `rank` (chunk index) goes first.

        An OriginThrottled or OriginTimedOut raised inside halves the number of readers, once for all requests
        that were in flight at that time.
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
        """Hold permits for many reads at once, for one reader at a time: all that no other reader needs.

        Their number changes over time. `on_bytes_received` is called with the bytes that arrive.
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

    def resize_batch(self, permits: BatchPermits, in_flight: int) -> bool:
        """Set how many permits a batch holds; return whether it may start one more request."""
        # Raises if the fill has failed or is to stop.
        self.sleep(0)
        with self._condition:
            if time.monotonic() < self._paused_until:
                allowed = in_flight
            else:
                others = self._active - permits.count + sum(not waiter.is_batch for waiter in self._waiting)
                allowed = max(1, min(permits.max_answers, self.reader_limit - others))
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
        """Block all requests for `seconds` (at most MAX_RETRY_AFTER) and a random bit longer."""
        wait = min(seconds, MAX_RETRY_AFTER) * random.uniform(1, 1 + _RETRY_JITTER)
        with self._condition:
            self._paused_until = max(self._paused_until, time.monotonic() + wait)

    def limit_to_one_reader(self) -> None:
        """Use one reader from now on, for an origin without range requests; reads are ordered by rank."""
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
        # One batch at a time: a waiting second one must not block single readers behind it.
        eligible = [other for other in self._waiting if not (other.is_batch and self._has_batch)]
        return (
            0.0
            if self._active < self.reader_limit and eligible and waiter == min(eligible)
            else _WAIT_INTERVAL
        )

    def _halve_readers(self, acquired_at: float) -> None:
        with self._condition:
            # Requests admitted before the last halving tell nothing about the lower concurrency.
            if acquired_at > self._slowed_at:
                self._slowed_at = time.monotonic()
                self._concurrency.halve()
