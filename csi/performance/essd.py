"""Read performance of an Alibaba Cloud ESSD by size: the published formulae.

Sources: Alibaba Cloud, ECS user guide, "ESSDs" (PL0 to PL3) and "ESSD AutoPL disks". Sizes are in whole GiB,
as there. KB, MB and GB in the sources are read as KiB, MiB and GiB, since the provisioned throughput is
published as 16 KB x IOPS / 1,024 in MB/s.
"""

from __future__ import annotations

from dataclasses import dataclass

from csi.performance.limits import IO_SIZE, Rate

MIB = 2**20
# "ESSD AutoPL disks", provisioned and burst performance: a capacity of 3 GiB or less has neither.
MIN_AUTOPL_GIB = 4


@dataclass(frozen=True)
class _Level:
    """One row of the table: IOPS and bytes per second, each with a base, an amount per GiB and a ceiling.

    `min_gib` is the smallest size that offers the level.
    """

    iops: int
    iops_per_gib: int
    max_iops: int
    bytes: int
    bytes_per_gib: int
    max_bytes: int
    min_gib: int = 1


_LEVELS = {
    "PL0": _Level(1800, 12, 10_000, 100 * MIB, MIB // 4, 180 * MIB),
    "PL1": _Level(1800, 50, 50_000, 120 * MIB, MIB // 2, 350 * MIB),
    "PL2": _Level(1800, 50, 100_000, 120 * MIB, MIB // 2, 750 * MIB, 461),
    "PL3": _Level(1800, 50, 1_000_000, 120 * MIB, MIB // 2, 4000 * MIB, 1261),
}
LEVELS = tuple(_LEVELS)


def min_gib(level: str) -> int:
    """Return the smallest size in GiB that offers `level` (one of LEVELS).

    Source: "ESSDs", capacity ranges: PL2 from 461 GiB, PL3 from 1,261 GiB. PL0 and PL1 are offered in every
    size here.
    """
    return _LEVELS[level].min_gib


def level_rate(level: str, gib: int) -> Rate:
    """Return the rate of a disk of `level` (one of LEVELS).

    Source: "ESSDs", formulae per disk, C in GiB: PL0 min(1,800 + 12C, 10,000) IOPS and min(100 + 0.25C, 180)
    MB/s; PL1 min(1,800 + 50C, 50,000) and min(120 + 0.5C, 350); PL2 and PL3 as PL1 with ceilings of 100,000
    and 750, 1,000,000 and 4,000.
    """
    return Rate(_level_iops(_LEVELS[level], gib), _level_bytes(_LEVELS[level], gib))


def _level_iops(row: _Level, gib: int) -> int:
    return min(row.iops + row.iops_per_gib * gib, row.max_iops)


def _level_bytes(row: _Level, gib: int) -> int:
    return min(row.bytes + row.bytes_per_gib * gib, row.max_bytes)


def baseline_iops(gib: int) -> int:
    """Return the IOPS of an AutoPL disk with nothing provisioned.

    Source: "ESSD AutoPL disks", baseline performance: max(min(1,800 + 50C, 50,000), 3,000), a PL1 disk with a
    floor.
    """
    return max(_level_iops(_LEVELS["PL1"], gib), 3000)


def baseline_bytes(gib: int) -> int:
    """Return the bytes per second of an AutoPL disk with nothing provisioned.

    Source: "ESSD AutoPL disks", baseline performance: max(min(120 + 0.5C, 350), 125) MB/s.
    """
    return max(_level_bytes(_LEVELS["PL1"], gib), 125 * MIB)


def max_provisioned_iops(gib: int) -> int:
    """Return the most IOPS that can be provisioned on top of the baseline, 0 if none can.

    Source: "ESSD AutoPL disks", provisioned IOPS: none up to 3 GiB, else 1 to min(1,000C - baseline IOPS,
    50,000).
    """
    return min(1000 * gib - baseline_iops(gib), 50_000) if gib >= MIN_AUTOPL_GIB else 0


def guaranteed_rate(gib: int, provisioned: int) -> Rate:
    """Return the rate of the baseline and `provisioned` IOPS together.

    Source: "ESSD AutoPL disks", provisioned throughput: 16 KB x provisioned IOPS / 1,024 MB/s.
    """
    return Rate(baseline_iops(gib) + provisioned, baseline_bytes(gib) + provisioned * IO_SIZE)


def rate_without_bursting(gib: int, provisioned: int) -> Rate:
    """Return the rate of an AutoPL disk with bursting off.

    Source: "ESSD AutoPL disks", performance burst disabled: baseline and provisioned, at most 100,000 IOPS
    and 1,131 MB/s.
    """
    return Rate(
        min(baseline_iops(gib) + provisioned, 100_000),
        min(baseline_bytes(gib) + provisioned * IO_SIZE, 1131 * MIB),
    )


def max_burst_rate(gib: int, provisioned: int) -> Rate:
    """Return the highest rate of an AutoPL disk of at least MIN_AUTOPL_GIB with bursting on.

    Source: "ESSD AutoPL disks", performance burst enabled: min(1,000,000, 1,000C) IOPS and
    max(min(16 KB x IOPS / 1,024, 4 GB/s), baseline + provisioned throughput).
    """
    iops = min(1_000_000, 1000 * gib)
    return Rate(iops, max(min(iops * IO_SIZE, 4096 * MIB), baseline_bytes(gib) + provisioned * IO_SIZE))
