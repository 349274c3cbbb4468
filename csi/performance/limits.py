"""Read limits: sustained rates and the bursts above them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The size up to which ESSD counts a read as one I/O. Source: Alibaba Cloud, "ESSD AutoPL disks": provisioned
# throughput = 16 KB x IOPS / 1024.
IO_SIZE = 16 * 2**10


@dataclass(frozen=True)
class Rate:
    """Reads per second: `iops` as the kernel counts I/Os, `bytes_per_second` in bytes; None for no limit."""

    iops: int | None = None
    bytes_per_second: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Convert to the JSON that records store."""
        return {"iops": self.iops, "bytes_per_second": self.bytes_per_second}

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Rate:
        """Read what `to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
        return Rate(iops=_number(stored["iops"]), bytes_per_second=_number(stored["bytes_per_second"]))

    def __add__(self, other: Rate) -> Rate:
        return Rate(
            _add_or_none(self.iops, other.iops), _add_or_none(self.bytes_per_second, other.bytes_per_second)
        )

    def __str__(self) -> str:
        parts = [] if self.iops is None else [f"{self.iops} IOPS"]
        if self.bytes_per_second is not None:
            parts.append(f"{_format_size(self.bytes_per_second)}/s")
        return " and ".join(parts) or "no limit"


UNLIMITED = Rate()


@dataclass(frozen=True)
class Limits:
    """What one volume may read in one pod.

    `sustained` is always available. `burst`, if any, is the cap while bursting: as long as `credit` (in I/Os)
    lasts, or at any time if `credit` is None, and then I/O above `sustained` is metered. `notes` say what was
    lowered to fit the size of the volume.
    """

    sustained: Rate
    burst: Rate | None = None
    credit: int | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Convert to the JSON that records store.

        Device names are hashes of this form, so it must not change.
        """
        return {
            "sustained": self.sustained.to_json(),
            "burst": None if self.burst is None else self.burst.to_json(),
            "credit": self.credit,
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Limits:
        """Read what `to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
        return Limits(
            sustained=Rate.from_json(stored["sustained"]),
            burst=None if stored["burst"] is None else Rate.from_json(stored["burst"]),
            credit=_number(stored["credit"]),
            notes=tuple(map(str, stored["notes"])),
        )

    def __add__(self, other: Limits) -> Limits:
        burst = (
            (self.burst or self.sustained) + (other.burst or other.sustained)
            if self.burst or other.burst
            else None
        )
        return Limits(
            self.sustained + other.sustained,
            burst,
            _add_known(self.credit, other.credit),
            tuple(dict.fromkeys(self.notes + other.notes)),
        )

    def __str__(self) -> str:
        if self.burst is None:
            return str(self.sustained)
        how = (
            "bursting at any time, metered"
            if self.credit is None
            else f"bursting on a credit of {self.credit} I/Os"
        )
        return f"{self.sustained}, {how}, to {self.burst}"


def sum_limits(first: Limits, *more: Limits) -> Limits:
    """Add limits."""
    return sum(more, first)


def _format_size(number: int) -> str:
    unit, name = (2**20, "MiB") if number >= 2**20 else (2**10, "KiB")
    return f"{number / unit:.3f}".rstrip("0").rstrip(".") + f" {name}"


def _number(stored: Any) -> int | None:
    return None if stored is None else int(stored)


# Of a rate, None means no limit, and no limit plus a limit is no limit. Of a credit, None means none was
# given.
def _add_or_none(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _add_known(first: int | None, second: int | None) -> int | None:
    return None if first is None and second is None else (first or 0) + (second or 0)


# Bytes per second: 1 PiB/s, far beyond any device, and within the 64 bits of the kernel's interface.
MAX_BANDWIDTH = 2**50
