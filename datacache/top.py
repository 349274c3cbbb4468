"""Read rates and limits of a node's volumes, from the plugin's records and the kernel's counters.

Both are only read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.detect import detect_hierarchy
from csi.linux.cgroups.hierarchy import CgroupHierarchy, ReadCount
from csi.linux.cgroups.pod_cgroups import PodCgroups
from csi.linux.diskstats import reads_by_device
from csi.linux.mounts import KernelMountTable, Mount, find_mount
from csi.performance.limits import Limits, Rate
from node_plugin.throttle.burst import BurstState
from node_plugin.throttle.group import limited_cgroups
from node_plugin.throttle.records import GroupRecord, read_records
from node_plugin.volumes.records import read_volumes

MIB = 2**20


@dataclass(frozen=True)
class ThrottleRow:
    """One volume in one pod, whose uid is "" if unknown.

    `limits`, `applied_rate` and `burst` are None without limits. `count` has all reads so far: those of the
    pod if it has limits, else those of the device by all that share it.
    """

    volume: str
    pod: str
    target: str
    device: str
    count: ReadCount
    limits: Limits | None = None
    applied_rate: Rate | None = None
    burst: BurstState | None = None


class ThrottledNode:
    """Node whose plugin keeps `store`; `hierarchy` throttles there, None if nothing does."""

    def __init__(self, store: Path, hierarchy: CgroupHierarchy | None) -> None:
        self._store, self._hierarchy = store, hierarchy

    def list_rows(self) -> list[ThrottleRow]:
        """Return a row for each published volume, sorted by pod."""
        limited = self._list_limited()
        mounts = KernelMountTable().list_mounts()
        unlimited = [
            _unlimited_row(volume.id, target, publication.pod, mounts)
            for volume in read_volumes(self._store / "volumes")
            for target, publication in volume.target_paths.items()
            if target not in limited
        ]
        reads = reads_by_device({row.device for row in unlimited})
        counted = [
            ThrottleRow(
                row.volume, row.pod, row.target, row.device, ReadCount(*reads.get(row.device, (0, 0)))
            )
            for row in unlimited
        ]
        return sorted([*limited.values(), *counted], key=lambda row: (row.pod, row.volume, row.target))

    def _list_limited(self) -> dict[str, ThrottleRow]:
        records = read_records(self._store / "throttles")
        pods = PodCgroups(self._hierarchy.root) if self._hierarchy else None
        if pods:
            pods.rescan()
        return {row.target: row for record in records for row in self._build_rows(record, pods)}

    def _build_rows(self, record: GroupRecord, pods: PodCgroups | None) -> list[ThrottleRow]:
        applied_rate, count = Rate(), ReadCount()
        if pods and self._hierarchy:
            for folder in pods.find(record.pod):
                applied_rate = self._hierarchy.read_limit(folder, record.device)
                count = sum(
                    (
                        self._hierarchy.read_count(cgroup, record.device)
                        for cgroup in limited_cgroups(self._hierarchy, folder)
                    ),
                    count,
                )
        pod, device, burst = record.pod, record.device, record.burst
        return [
            ThrottleRow(member.volume, pod, target, device, count, member.limits, applied_rate, burst)
            for target, member in record.members.items()
        ]


def detect_hierarchy_or_none(root: Path) -> CgroupHierarchy | None:
    """Return the cgroup hierarchy that throttles on this machine, None if there is none.

    Cgroups are mounted at `root`.
    """
    try:
        return detect_hierarchy(root)
    except UnsupportedByNode:
        return None


def _unlimited_row(volume: str, target: str, pod: str, mounts: list[Mount]) -> ThrottleRow:
    mount = find_mount(mounts, target)
    return ThrottleRow(volume, pod, target, mount.device if mount else "", ReadCount())


@dataclass(frozen=True)
class ThrottleSample:
    """Row with its read rates since the previous sample, per second."""

    row: ThrottleRow
    iops: float
    bytes_per_second: float

    def to_json(self) -> dict[str, object]:
        """Return JSON values, None for missing values."""
        row = self.row
        sustained, burst = (row.limits.sustained, row.limits.burst) if row.limits else (Rate(), None)
        return {
            "volume": row.volume,
            "pod": row.pod,
            "target": row.target,
            "device": row.device,
            "iops": round(self.iops, 1),
            "bytes_per_second": round(self.bytes_per_second),
            "limit_iops": sustained.iops,
            "limit_bytes_per_second": sustained.bytes_per_second,
            "burst_iops": burst.iops if burst else None,
            "in_force_iops": row.applied_rate.iops if row.applied_rate else None,
            "in_force_bytes_per_second": row.applied_rate.bytes_per_second if row.applied_rate else None,
            "credit": None
            if row.burst is None or row.burst.credit is None
            else round(max(0, row.burst.credit)),
            "metered_ios": None if row.burst is None or not burst else round(row.burst.metered_ios),
        }

    def to_columns(self) -> tuple[str, ...]:
        """Return the columns of `TOP_COLUMNS`."""
        facts, limits = self.to_json(), self.row.limits
        numbers = (f"{self.iops:.0f}", f"{self.bytes_per_second / MIB:.1f}")
        burst_columns = tuple(
            "" if facts[key] is None else str(facts[key]) for key in ("credit", "metered_ios")
        )
        applied = "" if limits is None else str(self.row.applied_rate)
        return (self.row.volume, self.row.pod, str(limits or "none"), applied, *numbers, *burst_columns)


TOP_COLUMNS = ("volume", "pod", "limits", "in force", "IOPS", "MiB/s", "credit left", "burst I/O")


class ThrottleSampler:
    """Sampler of a node's rows; each sample has the rates since the one before."""

    def __init__(self, node: ThrottledNode) -> None:
        self._node = node
        self._sampled_at = time.monotonic()
        self._previous_counts = _count_by_row(node.list_rows())

    def sample(self) -> list[ThrottleSample]:
        """Return the rows with their rates since the last sample, 0 for new rows."""
        rows, now = self._node.list_rows(), time.monotonic()
        seconds, before = now - self._sampled_at, self._previous_counts
        self._sampled_at, self._previous_counts = now, _count_by_row(rows)
        return [_build_sample(row, before.get((row.target, row.device), row.count), seconds) for row in rows]


def _count_by_row(rows: list[ThrottleRow]) -> Mapping[tuple[str, str], ReadCount]:
    return {(row.target, row.device): row.count for row in rows}


def _build_sample(row: ThrottleRow, before: ReadCount, seconds: float) -> ThrottleSample:
    delta = row.count - before
    return ThrottleSample(row, max(0, delta.ios) / seconds, max(0, delta.bytes) / seconds)
