"""One job for each key: joined, outlived by its work, stopped when nobody comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from csi.concurrency import single_flight
from csi.concurrency.deadline import Deadline
from csi.concurrency.single_flight import SingleFlight
from csi.errors import Busy, OriginUnavailable


class Gate:
    """A job that ends when it is let go, with the given error or none."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.runs, self.go, self.stopped = error, 0, threading.Event(), False

    def run(self) -> None:
        self.runs += 1
        assert self.go.wait(30)
        if self.stopped:
            raise Busy("stopped")
        if self.error:
            raise self.error

    def stop(self) -> None:
        self.stopped = True
        self.go.set()


def eventually(holds: Callable[[], object]) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end and not holds():
        time.sleep(0.005)
    return bool(holds())


def wait(flights: SingleFlight[str, Gate], job: Gate, seconds: float = 30.0, key: str = "key") -> Gate:
    return flights.wait(key, job, Deadline(seconds), lambda _: "still at it")


def test_callers_of_one_key_share_one_job() -> None:
    flights, job, answers = SingleFlight[str, Gate]("test"), Gate(), list[Gate]()
    threads = [threading.Thread(target=lambda: answers.append(wait(flights, job))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: flights.find("key") and len(flights._flights["key"].waiters) == 8)
    job.go.set()
    for thread in threads:
        thread.join()
    assert answers == [job] * 8
    assert job.runs == 1


def test_keys_do_not_wait_for_each_other() -> None:
    flights, slow, quick = SingleFlight[str, Gate]("test"), Gate(), Gate()
    with pytest.raises(Busy, match="still at it"):
        wait(flights, slow, 0.01, "slow")
    quick.go.set()
    assert wait(flights, quick, key="quick") is quick
    slow.go.set()


def test_a_job_outlives_its_caller_and_the_next_one_joins_it() -> None:
    flights, job = SingleFlight[str, Gate]("test"), Gate()
    with pytest.raises(Busy, match="still at it"):
        wait(flights, job, 0.01)
    assert flights.find("key") is job
    threading.Timer(0.05, job.go.set).start()
    assert wait(flights, Gate()) is job


def test_an_error_that_nobody_heard_is_raised_for_the_next_caller_once() -> None:
    flights, job, later = SingleFlight[str, Gate]("test"), Gate(OriginUnavailable("away")), Gate()
    with pytest.raises(Busy):
        wait(flights, job, 0.01)
    job.go.set()
    assert eventually(lambda: flights.find("key") is None)
    with pytest.raises(OriginUnavailable, match="away"):
        wait(flights, later)
    later.go.set()
    assert wait(flights, later) is later


def test_an_error_that_is_old_is_raised_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    flights, job, later = SingleFlight[str, Gate]("test"), Gate(OriginUnavailable("away")), Gate()
    with pytest.raises(Busy):
        wait(flights, job, 0.01)
    job.go.set()
    assert eventually(lambda: flights.find("key") is None)
    monkeypatch.setattr(single_flight, "_ERROR_TTL", -1.0)
    later.go.set()
    assert wait(flights, later) is later


def test_a_caller_that_hung_up_leaves_the_error_to_the_next_one() -> None:
    flights, job, deadline = SingleFlight[str, Gate]("test"), Gate(OriginUnavailable("away")), Deadline(30)
    threading.Timer(0.05, lambda: (deadline.cancel("gone"), job.go.set())).start()
    with pytest.raises(Busy, match="gone"):
        flights.wait("key", job, deadline, lambda _: "still at it")
    assert eventually(lambda: flights.find("key") is None)
    with pytest.raises(OriginUnavailable):
        wait(flights, Gate())


def test_a_job_that_nobody_comes_back_for_is_stopped() -> None:
    flights, job = SingleFlight[str, Gate]("test", abandoned_timeout=0.02), Gate()
    with pytest.raises(Busy):
        wait(flights, job, 0.01)
    assert eventually(lambda: job.stopped)
    assert eventually(lambda: not flights._flights)


def test_a_job_that_somebody_waits_for_again_is_not_stopped() -> None:
    flights, job = SingleFlight[str, Gate]("test", abandoned_timeout=0.2), Gate()
    with pytest.raises(Busy):
        wait(flights, job, 0.01)
    threading.Timer(0.5, job.go.set).start()
    assert wait(flights, job) is job
    assert not job.stopped


def test_stopping_all_reaches_every_running_job() -> None:
    flights, jobs = SingleFlight[str, Gate]("test"), [Gate(), Gate()]
    for number, job in enumerate(jobs):
        with pytest.raises(Busy):
            wait(flights, job, 0.01, str(number))
    flights.stop_all()
    assert [job.stopped for job in jobs] == [True, True]
