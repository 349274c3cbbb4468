"""What bursting costs, simulated second by second."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.spec.limits import IO_SIZE, Limits, Rate
from node_plugin.throttle.burst import Burst, excess
from node_plugin.throttle.hierarchy import Count

TICK = 0.25


def limits(sustained: int, burst: int, credit: int | None) -> Limits:
    return Limits(Rate(sustained, sustained * IO_SIZE), Rate(burst, burst * IO_SIZE), credit)


@dataclass
class Disk:
    """Reads as fast as the limit lets it, or slower where asked; looked at as the keeper does."""

    given: Limits
    burst: Burst
    done: float = 0.0
    changes: int = 0

    def run(self, seconds: float, demand: float = float("inf")) -> float:
        """I/Os done in `seconds`."""
        before, left = self.done, seconds
        while left > 1e-9:
            step = min(TICK, self.burst.look_again(self.given), left)
            rate = self.burst.rate(self.given).iops or 0
            ios = min(rate, demand) * step
            was = self.burst.open
            self.burst = self.burst.after(self.given, Count(int(ios), 0), step)
            self.changes += was != self.burst.open
            self.done += int(ios)
            left -= step
        return self.done - before


def disk(sustained: int = 500, burst: int = 3000, credit: int | None = 6000) -> Disk:
    given = limits(sustained, burst, credit)
    return Disk(given, Burst.begin(given))


def test_a_full_credit_bursts_then_holds_the_sustained_limit_then_bursts_again_after_a_rest() -> None:
    running = disk()
    assert running.run(2) == pytest.approx(6000, rel=0.01)
    running.run(1)
    assert running.run(5) == pytest.approx(2500, rel=0.03)
    running.run(6, demand=0)
    assert running.run(1) == pytest.approx(3000, rel=0.05)
    assert running.changes == 2


@given(st.integers(100, 20_000), st.floats(1.2, 20), st.integers(0, 200_000), st.floats(20, 120))
def test_under_full_demand_the_whole_is_the_sustained_limit_and_the_credit(sustained: int, factor: float, credit: int, seconds: float) -> None:
    running = disk(sustained, int(sustained * factor) + 1, credit)
    expected = min(sustained * seconds + credit, int(sustained * factor) * seconds)
    assert running.run(seconds) == pytest.approx(expected, rel=0.03)


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 5000)), min_size=1, max_size=20))
def test_no_demand_gets_more_than_the_sustained_limit_and_the_credit(phases: list[tuple[float, float]]) -> None:
    running = disk()
    for seconds, demand in phases:
        running.run(seconds, demand)
    lasted = sum(seconds for seconds, _ in phases)
    assert running.done <= 500 * lasted + 6000 + 3000 * 0.03
    assert running.burst.credit is not None and running.burst.credit <= 6000


def test_a_demand_below_the_sustained_limit_never_changes_the_limit() -> None:
    running = disk()
    running.run(60, demand=499)
    assert running.changes == 0 and running.burst.metered == 0


def test_without_a_credit_the_burst_stays_open_and_what_is_above_is_metered() -> None:
    running = disk(1000, 5000, None)
    assert running.run(10) == pytest.approx(50_000, rel=0.01)
    assert running.burst.metered == pytest.approx(40_000, rel=0.01)
    assert running.burst.open and running.changes == 0


def test_large_reads_count_by_their_bytes() -> None:
    sustained = Rate(1000, 1000 * IO_SIZE)
    assert excess(sustained, Count(100, 3000 * IO_SIZE), 1.0) == 2000
    assert excess(sustained, Count(1000, 1000 * 4096), 1.0) == 0
    assert excess(sustained, Count(0, 0), 2.0) == -2000
    assert excess(Rate(), Count(10**9, 10**12), 1.0) == 0


def test_a_debt_is_bounded() -> None:
    given = limits(500, 3000, 6000)
    burst = Burst.begin(given)
    for _ in range(100):
        burst = burst.after(given, Count(10_000, 0), 1.0)
    assert burst.credit == -2500 and not burst.open


def test_changed_limits_keep_what_is_left_of_the_credit() -> None:
    given = limits(500, 3000, 6000)
    burst = Burst.begin(given).after(given, Count(3000, 0), 1.0)
    assert burst.credit == 3500
    assert burst.under(limits(500, 3000, 10_000)).credit == 3500
    assert burst.under(limits(500, 3000, 1000)).credit == 1000
    assert burst.under(Limits(Rate(500))).credit is None and not burst.under(Limits(Rate(500))).open
    fresh = Burst.begin(Limits(Rate(500))).under(given)
    assert fresh.credit == 6000 and fresh.open
