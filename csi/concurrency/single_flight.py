"""One job for each key at a time, joined by all callers who need its result.

A call of the plugin may wait only for a while, but its work must not be lost when the wait ends. So the job
runs in a thread of its own, and the next call for the same key finds it, or its error. The pattern is known
as "single flight" (Go, golang.org/x/sync/singleflight).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from csi.concurrency.deadline import Deadline
from csi.errors import Busy, FillStopped

K = TypeVar("K", bound=Hashable)
J = TypeVar("J", bound="Job")

# A caller who returns after this many seconds starts a new job; until then it gets the error of the last one.
_ERROR_TTL = 60.0


class Job(Protocol):
    """Work that can be stopped from another thread; its result, if any, is an attribute of the job."""

    def run(self) -> None:
        """Do the work; called once, in a thread of its own."""

    def stop(self) -> None:
        """Make `run` raise Busy soon."""


@dataclass(eq=False)
class _Flight(Generic[J]):
    """A job and all callers that wait for it."""

    job: J
    waiters: set[Deadline] = field(default_factory=set)
    stop_timer: threading.Timer | None = None
    error: Exception | None = None
    ended_at: float = 0.0

    @property
    def is_stale(self) -> bool:
        return self.ended_at > 0 and time.monotonic() - self.ended_at > _ERROR_TTL


class SingleFlight(Generic[K, J]):
    """Registry that runs at most one job for each key, in threads called `name`. Thread-safe.

    The error of a job that had no waiter left is kept for a minute, for the next caller. A job without
    waiters for `abandoned_timeout` seconds is stopped; None lets it run to its end.
    """

    def __init__(self, name: str, abandoned_timeout: float | None = None) -> None:
        self._name, self._abandoned_timeout = name, abandoned_timeout
        self._lock = threading.Lock()
        self._flights: dict[K, _Flight[J]] = {}

    def wait(self, key: K, new_job: J, deadline: Deadline, describe: Callable[[J], str]) -> J:
        """Return the job for `key` when it is done: the running one, or `new_job`, which is started.

        Raises the job's own error, or Busy with `describe(job)` if `deadline` ends first; the job continues
        then.
        """
        flight = self._join(key, new_job, deadline)
        while not flight.ended_at and not deadline.is_over:
            deadline.sleep()
        self._leave(key, flight, deadline)
        if deadline.cancelled or not flight.ended_at:
            raise Busy(deadline.cancelled or describe(flight.job))
        if flight.error:
            raise flight.error
        return flight.job

    def find(self, key: K) -> J | None:
        """Return the running job of a key, or None."""
        flight = self._flights.get(key)
        return flight.job if flight and not flight.ended_at else None

    def stop_all(self) -> None:
        """Stop all running jobs."""
        with self._lock:
            jobs = [flight.job for flight in self._flights.values() if not flight.ended_at]
        for job in jobs:
            job.stop()

    def _join(self, key: K, new_job: J, deadline: Deadline) -> _Flight[J]:
        with self._lock:
            # Errors that no caller picks up would be kept for ever, with all that their tracebacks refer to.
            self._flights = {other: flight for other, flight in self._flights.items() if not flight.is_stale}
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight(new_job)
                threading.Thread(target=self._run, args=(key, flight), name=self._name, daemon=True).start()
            flight.waiters.add(deadline)
            # The job has a waiter again.
            if flight.stop_timer:
                flight.stop_timer.cancel()
            return flight

    def _leave(self, key: K, flight: _Flight[J], deadline: Deadline) -> None:
        with self._lock:
            flight.waiters.discard(deadline)
            if flight.ended_at:
                # A caller that hung up has not seen the error: keep it for the next caller.
                if not deadline.cancelled and self._flights.get(key) is flight:
                    del self._flights[key]
            elif not flight.waiters and self._abandoned_timeout is not None:
                flight.stop_timer = self._stop_later(flight, self._abandoned_timeout)

    def _stop_later(self, flight: _Flight[J], timeout: float) -> threading.Timer:
        timer = threading.Timer(timeout, self._stop_if_abandoned, (flight,))
        timer.daemon = True
        timer.start()
        return timer

    def _stop_if_abandoned(self, flight: _Flight[J]) -> None:
        # Stop outside of the lock: `stop` is foreign code and may block. A caller who joins in between gets
        # Busy and calls again.
        with self._lock:
            is_abandoned = not flight.waiters
        if is_abandoned:
            flight.job.stop()

    def _run(self, key: K, flight: _Flight[J]) -> None:
        error = None
        try:
            flight.job.run()
        except Exception as exception:
            error = exception
        with self._lock:
            flight.error, flight.ended_at = error, time.monotonic()
            if flight.stop_timer:
                flight.stop_timer.cancel()
            for deadline in flight.waiters:
                deadline.wake()
            # Results are stored by the job itself, and Busy or FillStopped need no reporting: keep real
            # errors only.
            is_unreported_error = error is not None and not isinstance(error, Busy | FillStopped)
            if not flight.waiters and not is_unreported_error and self._flights.get(key) is flight:
                del self._flights[key]
