"""What reads are let through: rates and, above them, bursts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The size up to which ESSD counts a read as one I/O (Alibaba Cloud, "ESSD AutoPL disks": provisioned throughput = 16 KB x IOPS / 1024).
IO_SIZE = 16 * 2**10


@dataclass(frozen=True)
class Rate:
    """Reads a second: `iops` in I/Os as the kernel counts them, `bytes_per_second` in bytes; None where there is no limit."""

    iops: int | None = None
    bytes_per_second: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the rate as records keep it."""
        return {"iops": self.iops, "bytes_per_second": self.bytes_per_second}

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> Rate:
        """Return the rate that `to_json` wrote; raise KeyError, TypeError or ValueError for anything else."""
        return Rate(iops=_number(kept["iops"]), bytes_per_second=_number(kept["bytes_per_second"]))

    def __add__(self, other: Rate) -> Rate:
        return Rate(
            _add_or_none(self.iops, other.iops), _add_or_none(self.bytes_per_second, other.bytes_per_second)
        )

    def __str__(self) -> str:
        words = [] if self.iops is None else [f"{self.iops} IOPS"]
        if self.bytes_per_second is not None:
            words.append(f"{_format_size(self.bytes_per_second)}/s")
        return " and ".join(words) or "no limit"


UNLIMITED = Rate()


@dataclass(frozen=True)
class Limits:
    """What one volume may read in one pod.

    `sustained` is what it may always do. `burst`, where there is one, is the cap while it bursts: with `credit` (in
    I/Os) as long as credit lasts, without (None) at any time, and then I/O above `sustained` is metered. `notes` say in
    words what was lowered to fit the volume's size.
    """

    sustained: Rate
    burst: Rate | None = None
    credit: int | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the limits as records keep them. Names of devices are hashes of this form, so it stays as it is."""
        return {
            "sustained": self.sustained.to_json(),
            "burst": None if self.burst is None else self.burst.to_json(),
            "credit": self.credit,
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> Limits:
        """Return the limits that `to_json` wrote; raise KeyError, TypeError or ValueError for anything else."""
        return Limits(
            sustained=Rate.from_json(kept["sustained"]),
            burst=None if kept["burst"] is None else Rate.from_json(kept["burst"]),
            credit=_number(kept["credit"]),
            notes=tuple(map(str, kept["notes"])),
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
    """The sum of limits."""
    return sum(more, first)


def _format_size(number: int) -> str:
    unit, name = (2**20, "MiB") if number >= 2**20 else (2**10, "KiB")
    return f"{number / unit:.3f}".rstrip("0").rstrip(".") + f" {name}"


def _number(kept: Any) -> int | None:
    return None if kept is None else int(kept)


def _add_or_none(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second


def _add_known(first: int | None, second: int | None) -> int | None:
    return None if first is None and second is None else (first or 0) + (second or 0)


MAX_BANDWIDTH = 2**50
