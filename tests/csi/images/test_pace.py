"""A fill's bytes per second, on a clock of the test's own."""

from __future__ import annotations

from csi.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_what_is_taken_at_once_takes_its_time() -> None:
    clock = Clock()
    pace = Pace(1000, clock, clock.sleep)
    for _ in range(10):
        pace.take(500)
    assert clock.now == 105.0


def test_what_was_not_taken_is_lost_but_for_a_moment() -> None:
    clock = Clock()
    pace = Pace(1000, clock, clock.sleep)
    clock.now += 60
    pace.take(1000)
    assert 160.9 < clock.now < 161.0
