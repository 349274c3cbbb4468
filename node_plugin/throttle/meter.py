"""Metering of I/O above the sustained limit, from counters that are read periodically. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from csi.linux.cgroups.hierarchy import ReadCount
from csi.performance.limits import IO_SIZE, Rate


@dataclass(frozen=True)
class BurstMeter:
    """Meter of I/Os above the sustained limit.

    `total` is without the last slice of time, in which `used` was read in `seconds`; `previous_speed` is the
    speed (I/Os per second) of the slice before that.

    A slice in which reading began or ended was partly idle, and the I/O that the limit would have allowed in
    the idle part must not offset a burst in the other. The size of the parts is estimated from the speed of
    the busy neighbour, so each slice is charged when the next one is known.
    """

    total: float = 0.0
    used: ReadCount = ReadCount()
    seconds: float = 0.0
    previous_speed: float = 0.0

    def add_slice(self, sustained: Rate, used: ReadCount, seconds: float) -> BurstMeter:
        """Return the meter after another slice."""
        charged = self._excess_of_last_slice(sustained, _ios_per_second(used, seconds))
        return BurstMeter(self.total + charged, used, seconds, _ios_per_second(self.used, self.seconds))

    def _excess_of_last_slice(self, sustained: Rate, after: float) -> float:
        speed = _ios_per_second(self.used, self.seconds)
        began = not self.previous_speed
        ended = not after
        neighbour_speed = 0.0
        if began:
            neighbour_speed = after
        elif ended:
            neighbour_speed = self.previous_speed
        # The busy part of the slice, assuming the speed of its neighbour.
        active = self.seconds * min(1.0, speed / neighbour_speed) if neighbour_speed else self.seconds
        return max(0.0, excess_ios(sustained, self.used, active))

    @property
    def is_at_rest(self) -> bool:
        """Whether another slice without reads would change nothing."""
        return self.used == ReadCount()


def excess_ios(sustained: Rate, used: ReadCount, seconds: float) -> float:
    """Return the I/Os of `used` above the sustained limit, negative if below.

    Bytes count as I/Os of 16 KiB, as ESSD counts them.
    """
    excesses = [] if sustained.iops is None else [used.ios - sustained.iops * seconds]
    if sustained.bytes_per_second is not None:
        excesses.append((used.bytes - sustained.bytes_per_second * seconds) / IO_SIZE)
    return max(excesses, default=0.0)


def _ios_per_second(used: ReadCount, seconds: float) -> float:
    return max(used.ios, used.bytes / IO_SIZE) / seconds if seconds else 0.0
