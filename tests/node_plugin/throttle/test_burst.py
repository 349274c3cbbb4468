"""What bursting costs, simulated second by second."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.linux.cgroups.hierarchy import ReadCount
from csi.performance.limits import IO_SIZE, Limits, Rate
from node_plugin.throttle.burst import BurstState
from node_plugin.throttle.meter import excess_ios

TICK = 0.25


def limits(sustained: int, burst: int, credit: int | None) -> Limits:
    return Limits(Rate(sustained, sustained * IO_SIZE), Rate(burst, burst * IO_SIZE), credit)


@dataclass
class Disk:
    """Reads as fast as the limit lets it, or slower where asked; looked at as the keeper does."""

    given: Limits
    burst: BurstState
    done: float = 0.0
    changes: int = 0

    def run(self, seconds: float, demand: float = float("inf")) -> float:
        """I/Os done in `seconds`."""
        before, left = self.done, seconds
        while left > 1e-9:
            step = min(TICK, self.burst.seconds_until_check(self.given), left)
            rate = self.burst.current_rate(self.given).iops or 0
            ios = min(rate, demand) * step
            was = self.burst.is_open
            self.burst = self.burst.charge(self.given, ReadCount(int(ios), 0), step)
            self.changes += was != self.burst.is_open
            self.done += int(ios)
            left -= step
        return self.done - before


def disk(sustained: int = 500, burst: int = 3000, credit: int | None = 6000) -> Disk:
    given = limits(sustained, burst, credit)
    return Disk(given, BurstState.with_full_credit(given))


def test_a_full_credit_bursts_then_holds_the_sustained_limit_then_bursts_again_after_a_rest() -> None:
    running = disk()
    assert running.run(2) == pytest.approx(6000, rel=0.01)
    running.run(1)
    assert running.run(5) == pytest.approx(2500, rel=0.03)
    running.run(6, demand=0)
    assert running.run(1) == pytest.approx(3000, rel=0.05)
    assert running.changes == 2


@given(st.integers(100, 20_000), st.floats(1.2, 20), st.integers(0, 200_000), st.floats(20, 120))
def test_under_full_demand_the_whole_is_the_sustained_limit_and_the_credit(
    sustained: int, factor: float, credit: int, seconds: float
) -> None:
    running = disk(sustained, int(sustained * factor) + 1, credit)
    expected = min(sustained * seconds + credit, int(sustained * factor) * seconds)
    assert running.run(seconds) == pytest.approx(expected, rel=0.03)


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 5000)), min_size=1, max_size=20))
def test_no_demand_gets_more_than_the_sustained_limit_and_the_credit(
    phases: list[tuple[float, float]],
) -> None:
    running = disk()
    for seconds, demand in phases:
        running.run(seconds, demand)
    lasted = sum(seconds for seconds, _ in phases)
    assert running.done <= 500 * lasted + 6000 + 3000 * 0.03
    assert running.burst.credit is not None
    assert running.burst.credit <= 6000


@given(st.integers(1, 2000), st.floats(0, 600))
def test_no_credit_however_small_makes_the_limit_flutter(credit: int, demand: float) -> None:
    running = disk(500, 5000, credit)
    running.run(20, demand)
    assert running.changes <= 2


def test_a_demand_below_the_sustained_limit_never_changes_the_limit() -> None:
    running = disk()
    running.run(60, demand=499)
    assert running.changes == 0
    assert running.burst.metered_ios == 0


@pytest.mark.parametrize("start", [0.5, 0.6, 0.9])
@pytest.mark.parametrize("lasts", [2.0, 3.05, 3.2])
@pytest.mark.parametrize("sustained", [1000, 4000])
def test_what_is_metered_does_not_depend_on_when_the_counters_were_looked_at(
    start: float, lasts: float, sustained: int
) -> None:
    given, speed = limits(sustained, 5000, None), 5000
    looks = [0.0, 0.5, *(1 + TICK * number for number in range(16)), 5.5, 6.0]
    done = [int(speed * min(max(look - start, 0), lasts)) for look in looks]
    burst = BurstState.with_full_credit(given)
    for number in range(1, len(looks)):
        ios = done[number] - done[number - 1]
        burst = burst.charge(given, ReadCount(ios, ios * 4096), looks[number] - looks[number - 1])
    assert burst.metered_ios == pytest.approx((speed - sustained) * lasts, rel=0.02)


def test_a_burst_shorter_than_a_look_is_metered_in_favour_of_the_reader() -> None:
    given = limits(1000, 5000, None)
    burst = BurstState.with_full_credit(given)
    for ios in (0, 1500, 0, 0, 200, 0, 0):
        burst = burst.charge(given, ReadCount(ios, 0), 0.5)
    assert burst.metered_ios == 1000


def test_without_a_credit_the_burst_stays_open_and_what_is_above_is_metered() -> None:
    running = disk(1000, 5000, None)
    assert running.run(10) == pytest.approx(50_000, rel=0.01)
    running.run(1, demand=0)
    assert running.burst.metered_ios == pytest.approx(40_000, rel=0.01)
    assert running.burst.is_open
    assert running.changes == 0


def test_large_reads_count_by_their_bytes() -> None:
    sustained = Rate(1000, 1000 * IO_SIZE)
    assert excess_ios(sustained, ReadCount(100, 3000 * IO_SIZE), 1.0) == 2000
    assert excess_ios(sustained, ReadCount(1000, 1000 * 4096), 1.0) == 0
    assert excess_ios(sustained, ReadCount(0, 0), 2.0) == -2000
    assert excess_ios(Rate(), ReadCount(10**9, 10**12), 1.0) == 0


def test_a_debt_is_bounded() -> None:
    given = limits(500, 3000, 6000)
    burst = BurstState.with_full_credit(given)
    for _ in range(100):
        burst = burst.charge(given, ReadCount(10_000, 0), 1.0)
    assert burst.credit == -2500
    assert not burst.is_open


def test_changed_limits_keep_what_is_left_of_the_credit() -> None:
    given = limits(500, 3000, 6000)
    burst = BurstState.with_full_credit(given).charge(given, ReadCount(3000, 0), 1.0)
    assert burst.credit == 3500
    assert burst.with_limits(limits(500, 3000, 10_000)).credit == 3500
    assert burst.with_limits(limits(500, 3000, 1000)).credit == 1000
    assert burst.with_limits(Limits(Rate(500))).credit is None
    assert not burst.with_limits(Limits(Rate(500))).is_open
    fresh = BurstState.with_full_credit(Limits(Rate(500))).with_limits(given)
    assert fresh.credit == 6000
    assert fresh.is_open
