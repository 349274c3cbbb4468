"""Burst credits: I/O above the sustained limit is charged to a credit, or only metered.

Pure; the caller passes the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from csi.linux.cgroups.hierarchy import ReadCount
from csi.performance.limits import IO_SIZE, Limits, Rate
from node_plugin.throttle.meter import BurstMeter, excess_ios

# Seconds of bursting that an empty credit must allow before the burst reopens: every change of a kernel limit
# lets some I/O through, so it must not be changed too often.
_MIN_BURST_SECONDS = 0.2
# Seconds of bursting: the largest debt, from I/O done before the limit was lowered. Where each container has
# the limit for itself (cgroup v1), the debt would otherwise grow forever.
_MAX_DEBT_SECONDS = 1.0
# A credit that lasts no longer than this many seconds counts as used up.
_NEGLIGIBLE_SECONDS = 0.02


@dataclass(frozen=True)
class BurstState:
    """State of a burst.

    `credit` is in I/Os (None if the limits have none; negative after I/O done before the limit was lowered).
    `is_open` is whether the burst limit applies. `meter` counts the I/Os above the sustained limit.
    """

    credit: float | None = None
    is_open: bool = False
    meter: BurstMeter = BurstMeter()

    @staticmethod
    def with_full_credit(limits: Limits) -> BurstState:
        """Return the state with a full credit."""
        burst = BurstState(limits.credit)
        if limits.burst is None:
            return burst
        return replace(burst, is_open=limits.credit is None or burst._is_open_with(limits, limits.credit))

    def with_limits(self, limits: Limits) -> BurstState:
        """Return the state under changed limits: a new credit is full, an existing one keeps its value."""
        if limits.burst is None:
            return replace(self, credit=None, is_open=False)
        if limits.credit is None:
            return replace(self, credit=None, is_open=True)
        if self.credit is None:
            return replace(BurstState.with_full_credit(limits), meter=self.meter)
        return replace(self, credit=min(self.credit, limits.credit))

    def with_reduced_credit(self, limits: Limits, share: float) -> BurstState:
        """Return the state after a volume left; the others have `limits` and keep a `share` of the credit.

        The share is between 0 and 1.
        """
        return replace(
            self, credit=None if self.credit is None else min(self.credit * share, limits.credit or 0)
        )

    def charge(self, limits: Limits, used: ReadCount, seconds: float) -> BurstState:
        """Return the state `seconds` later, after `used` was read in between."""
        if limits.burst is None:
            return self
        meter = self.meter.add_slice(limits.sustained, used, seconds)
        if limits.credit is None or self.credit is None:
            return replace(self, meter=meter)
        above = excess_ios(limits.sustained, used, seconds)
        credit = max(min(limits.credit, self.credit - above), -max_drain_rate(limits) * _MAX_DEBT_SECONDS)
        return BurstState(credit, self._is_open_with(limits, credit), meter)

    def _is_open_with(self, limits: Limits, credit: float) -> bool:
        """Return whether the burst limit applies with this `credit`.

        An open burst stays open until the credit is used up. A closed one opens again once the credit is full
        or lasts for `_MIN_BURST_SECONDS`.
        """
        drain = max_drain_rate(limits)
        if credit <= drain * _NEGLIGIBLE_SECONDS:
            return False
        return self.is_open or credit >= min(limits.credit or 0, drain * _MIN_BURST_SECONDS)

    def with_added_credit(self, limits: Limits, credit: int) -> BurstState:
        """Return the state after a volume with a full `credit` joined; `limits` are those of all."""
        return replace(
            self, credit=None if self.credit is None else min(self.credit + credit, limits.credit or 0)
        )

    @property
    def metered_ios(self) -> float:
        """Number of I/Os above the sustained limit, without the slice between the last two measurements."""
        return self.meter.total

    def is_at_rest(self, limits: Limits | None) -> bool:
        """Return whether time without reads would change nothing."""
        return limits is None or (
            self.meter.is_at_rest and (limits.credit is None or self.credit == limits.credit)
        )

    def current_rate(self, limits: Limits) -> Rate:
        """Return the limit in force: burst or sustained."""
        return limits.burst if limits.burst and self.is_open else limits.sustained

    def seconds_until_check(self, limits: Limits) -> float:
        """Return the seconds that an open credit lasts at least; infinite without a credit."""
        if self.credit is None or not self.is_open:
            return float("inf")
        return max(self.credit / max_drain_rate(limits), _NEGLIGIBLE_SECONDS)


def max_drain_rate(limits: Limits) -> float:
    """Return how many I/Os per second a burst can take from the credit; at least 1."""
    sustained = limits.sustained
    burst = limits.burst or sustained
    drains = [1.0]
    if burst.iops is not None and sustained.iops is not None:
        drains.append(float(burst.iops - sustained.iops))
    if burst.bytes_per_second is not None and sustained.bytes_per_second is not None:
        drains.append((burst.bytes_per_second - sustained.bytes_per_second) / IO_SIZE)
    return max(drains)
