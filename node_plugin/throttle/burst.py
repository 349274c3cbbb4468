"""What bursting costs: I/O above the sustained limit, taken from a credit or only metered. Pure; time comes from the caller."""

from __future__ import annotations

from dataclasses import dataclass, replace

from csi.linux.cgroups.hierarchy import Count
from csi.performance.limits import IO_SIZE, Limits, Rate
from node_plugin.throttle.meter import Meter, excess

# An empty credit opens the burst again when it allows one this long: every change of a limit lets some I/O through.
_LEAST_BURST_SECONDS = 0.2
# I/O that came too late to be stopped is a debt of at most this long a burst: where each container holds the limit by itself, it would grow for ever.
_MOST_DEBT_SECONDS = 1.0
# A credit that the next look would find used up within this time counts as used up.
_NOTHING_SECONDS = 0.02


@dataclass(frozen=True)
class Burst:
    """`credit` in I/Os left (None where limits have none; below 0 after I/O that the last look came too late for), `open` whether the burst cap is
    the limit, `meter` the I/Os above the sustained limit so far.
    """

    credit: float | None = None
    open: bool = False
    meter: Meter = Meter()

    @staticmethod
    def begin(limits: Limits) -> Burst:
        """A full credit."""
        burst = Burst(limits.credit)
        return replace(burst, open=limits.burst is not None and (limits.credit is None or burst._stays_open(limits, limits.credit)))

    def under(self, limits: Limits) -> Burst:
        """The same burst when its limits change: a credit that was not there before is full, one that was keeps what it has."""
        if limits.burst is None:
            return replace(self, credit=None, open=False)
        if limits.credit is None:
            return replace(self, credit=None, open=True)
        if self.credit is None:
            return replace(Burst.begin(limits), meter=self.meter)
        return replace(self, credit=min(self.credit, limits.credit))

    def reduced(self, limits: Limits, share: float) -> Burst:
        """The same burst when a volume leaves and `limits` are those of the others, who have a `share` (0 to 1) of what is left."""
        return replace(self, credit=None if self.credit is None else min(self.credit * share, limits.credit or 0))

    def after(self, limits: Limits, used: Count, seconds: float) -> Burst:
        """The burst `seconds` later, when `used` was read meanwhile."""
        if limits.burst is None:
            return self
        meter = self.meter.after(limits.sustained, used, seconds)
        if limits.credit is None or self.credit is None:
            return replace(self, meter=meter)
        above = excess(limits.sustained, used, seconds)
        credit = max(min(limits.credit, self.credit - above), -most_drain(limits) * _MOST_DEBT_SECONDS)
        return Burst(credit, self._stays_open(limits, credit), meter)

    def _stays_open(self, limits: Limits, credit: float) -> bool:
        drain = most_drain(limits)
        if credit <= drain * _NOTHING_SECONDS:
            return False
        return self.open or credit >= min(limits.credit or 0, drain * _LEAST_BURST_SECONDS)

    def joined(self, limits: Limits, credit: int) -> Burst:
        """The same burst when a volume with a full `credit` joins and `limits` are those of both."""
        return replace(self, credit=None if self.credit is None else min(self.credit + credit, limits.credit or 0))

    @property
    def metered(self) -> float:
        """I/Os above the sustained limit, up to the look before the last."""
        return self.meter.total

    def at_rest(self, limits: Limits | None) -> bool:
        """Whether time without reads changes nothing."""
        return limits is None or (self.meter.at_rest and (limits.credit is None or self.credit == limits.credit))

    def rate(self, limits: Limits) -> Rate:
        """The limit in force."""
        return limits.burst if limits.burst and self.open else limits.sustained

    def look_again(self, limits: Limits) -> float:
        """Seconds in which an open credit cannot be used up, since the burst cap holds; infinite without a credit."""
        if self.credit is None or not self.open:
            return float("inf")
        return max(self.credit / most_drain(limits), _NOTHING_SECONDS)


def most_drain(limits: Limits) -> float:
    """I/Os a second that a burst takes from the credit at most; at least 1."""
    burst, sustained = limits.burst or limits.sustained, limits.sustained
    drains = [1.0]
    if burst.iops is not None and sustained.iops is not None:
        drains.append(float(burst.iops - sustained.iops))
    if burst.bytes_per_second is not None and sustained.bytes_per_second is not None:
        drains.append((burst.bytes_per_second - sustained.bytes_per_second) / IO_SIZE)
    return max(drains)
