"""How much I/O was above the sustained limit, from counters that are looked at only now and then. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from csi.linux.cgroups.hierarchy import Count
from csi.performance.limits import IO_SIZE, Rate


@dataclass(frozen=True)
class Meter:
    """`total` I/Os above the sustained limit so far, without the last slice of time: `used` in `seconds`.

    `before` is the speed (I/Os a second) of the slice before that.

    A slice in which reading began or ended was idle for a part of it, and what the limit would have let through in that part
    must not make up for a burst in the other. How large the parts are, the speed of its busy neighbour tells: so
    each slice is charged when the next one is known.
    """

    total: float = 0.0
    used: Count = Count()
    seconds: float = 0.0
    before: float = 0.0

    def after(self, sustained: Rate, used: Count, seconds: float) -> Meter:
        """The meter when another slice has passed."""
        charged = self._charge(sustained, _speed(used, seconds))
        return Meter(self.total + charged, used, seconds, _speed(self.used, self.seconds))

    def _charge(self, sustained: Rate, after: float) -> float:
        speed = _speed(self.used, self.seconds)
        began, ended = not self.before, not after
        beside = after if began else self.before if ended else 0.0
        active = self.seconds * min(1.0, speed / beside) if beside else self.seconds
        return max(0.0, excess(sustained, self.used, active))

    @property
    def at_rest(self) -> bool:
        """Whether another slice without reads would change nothing."""
        return self.used == Count()


def excess(sustained: Rate, used: Count, seconds: float) -> float:
    """I/Os by which `used` is above (below 0: under) the sustained limit; bytes count as I/Os of 16 KiB, as ESSD counts them."""
    over = [] if sustained.iops is None else [used.ios - sustained.iops * seconds]
    if sustained.bytes_per_second is not None:
        over.append((used.bytes - sustained.bytes_per_second * seconds) / IO_SIZE)
    return max(over, default=0.0)


def _speed(used: Count, seconds: float) -> float:
    return max(used.ios, used.bytes / IO_SIZE) / seconds if seconds else 0.0
