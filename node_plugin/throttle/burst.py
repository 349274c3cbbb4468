"""What bursting costs: I/O above the sustained limit, taken from a credit or only metered. Pure; time comes from the caller."""

from __future__ import annotations

from dataclasses import dataclass, replace

from csi.linux.cgroups.hierarchy import ReadCount
from csi.performance.limits import IO_SIZE, Limits, Rate
from node_plugin.throttle.meter import BurstMeter, excess_ios

# An empty credit opens the burst again when it allows one this long: every change of a limit lets some I/O through.
_MIN_BURST_SECONDS = 0.2
# I/O that came too late to be stopped is a debt of at most this long a burst: where each container holds the limit by itself, it would grow for ever.
_MAX_DEBT_SECONDS = 1.0
# A credit that the next look would find used up within this time counts as used up.
_NEGLIGIBLE_SECONDS = 0.02


@dataclass(frozen=True)
class BurstState:
    """`credit` in I/Os left (None where limits have none; below 0 after I/O that the last look came too late for), `is_open` whether the burst cap is
    the limit, `meter` the I/Os above the sustained limit so far.
    """

    credit: float | None = None
    is_open: bool = False
    meter: BurstMeter = BurstMeter()

    @staticmethod
    def with_full_credit(limits: Limits) -> BurstState:
        """A full credit."""
        burst = BurstState(limits.credit)
        return replace(
            burst,
            is_open=limits.burst is not None
            and (limits.credit is None or burst._stays_open(limits, limits.credit)),
        )

    def with_limits(self, limits: Limits) -> BurstState:
        """The same burst when its limits change: a credit that was not there before is full, one that was keeps what it has."""
        if limits.burst is None:
            return replace(self, credit=None, is_open=False)
        if limits.credit is None:
            return replace(self, credit=None, is_open=True)
        if self.credit is None:
            return replace(BurstState.with_full_credit(limits), meter=self.meter)
        return replace(self, credit=min(self.credit, limits.credit))

    def with_reduced_credit(self, limits: Limits, share: float) -> BurstState:
        """The same burst when a volume leaves and `limits` are those of the others, who have a `share` (0 to 1) of what is left."""
        return replace(
            self, credit=None if self.credit is None else min(self.credit * share, limits.credit or 0)
        )

    def charge(self, limits: Limits, used: ReadCount, seconds: float) -> BurstState:
        """The burst `seconds` later, when `used` was read meanwhile."""
        if limits.burst is None:
            return self
        meter = self.meter.add_slice(limits.sustained, used, seconds)
        if limits.credit is None or self.credit is None:
            return replace(self, meter=meter)
        above = excess_ios(limits.sustained, used, seconds)
        credit = max(min(limits.credit, self.credit - above), -max_drain_rate(limits) * _MAX_DEBT_SECONDS)
        return BurstState(credit, self._stays_open(limits, credit), meter)

    def _stays_open(self, limits: Limits, credit: float) -> bool:
        drain = max_drain_rate(limits)
        if credit <= drain * _NEGLIGIBLE_SECONDS:
            return False
        return self.is_open or credit >= min(limits.credit or 0, drain * _MIN_BURST_SECONDS)

    def with_added_credit(self, limits: Limits, credit: int) -> BurstState:
        """The same burst when a volume with a full `credit` joins and `limits` are those of both."""
        return replace(
            self, credit=None if self.credit is None else min(self.credit + credit, limits.credit or 0)
        )

    @property
    def metered_ios(self) -> float:
        """I/Os above the sustained limit, up to the look before the last."""
        return self.meter.total

    def is_at_rest(self, limits: Limits | None) -> bool:
        """Whether time without reads changes nothing."""
        return limits is None or (
            self.meter.is_at_rest and (limits.credit is None or self.credit == limits.credit)
        )

    def current_rate(self, limits: Limits) -> Rate:
        """The limit in force."""
        return limits.burst if limits.burst and self.is_open else limits.sustained

    def seconds_until_check(self, limits: Limits) -> float:
        """Seconds in which an open credit cannot be used up, since the burst cap holds; infinite without a credit."""
        if self.credit is None or not self.is_open:
            return float("inf")
        return max(self.credit / max_drain_rate(limits), _NEGLIGIBLE_SECONDS)


def max_drain_rate(limits: Limits) -> float:
    """I/Os a second that a burst takes from the credit at most; at least 1."""
    burst, sustained = limits.burst or limits.sustained, limits.sustained
    drains = [1.0]
    if burst.iops is not None and sustained.iops is not None:
        drains.append(float(burst.iops - sustained.iops))
    if burst.bytes_per_second is not None and sustained.bytes_per_second is not None:
        drains.append((burst.bytes_per_second - sustained.bytes_per_second) / IO_SIZE)
    return max(drains)
