"""What a node's volumes may read and do read now: from the plugin's records and the kernel's own counters, which are only looked at."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.detect import hierarchy_at
from csi.linux.cgroups.hierarchy import Count, Hierarchy
from csi.linux.cgroups.pod_cgroups import PodCgroups
from csi.linux.diskstats import reads_by_device
from csi.linux.mounts import KernelMounts, Mount, at
from csi.performance.limits import Limits, Rate
from node_plugin.throttle.burst import Burst
from node_plugin.throttle.group import places
from node_plugin.throttle.records import GroupRecord, read_records
from node_plugin.volumes.records import read_volumes

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One volume in one pod (its uid, "" where none is known).

    `limits`, `in_force` and `burst` are None without limits; `count` is what was read so far, by the pod where it has
    limits, else from the device by all that share it.
    """

    volume: str
    pod: str
    target: str
    device: str
    count: Count
    limits: Limits | None = None
    in_force: Rate | None = None
    burst: Burst | None = None


class Node:
    """The node whose plugin keeps `store`; `hierarchy` is what throttles there, None for nothing."""

    def __init__(self, store: Path, hierarchy: Hierarchy | None) -> None:
        self._store, self._hierarchy = store, hierarchy

    def rows(self) -> list[Row]:
        """A row for each published volume, those of one pod together."""
        limited = self._limited()
        mounts = KernelMounts().table()
        free = [
            _free(volume.id, target, shown.pod, mounts)
            for volume in read_volumes(self._store / "volumes")
            for target, shown in volume.targets.items()
            if target not in limited
        ]
        reads = reads_by_device({row.device for row in free})
        counted = [Row(row.volume, row.pod, row.target, row.device, Count(*reads.get(row.device, (0, 0)))) for row in free]
        return sorted([*limited.values(), *counted], key=lambda row: (row.pod, row.volume, row.target))

    def _limited(self) -> dict[str, Row]:
        records = read_records(self._store / "throttles")
        pods = PodCgroups(self._hierarchy.root) if self._hierarchy else None
        if pods:
            pods.look_around()
        return {row.target: row for record in records for row in self._rows_of(record, pods)}

    def _rows_of(self, record: GroupRecord, pods: PodCgroups | None) -> list[Row]:
        in_force, count = Rate(), Count()
        if pods and self._hierarchy:
            for folder in pods.find(record.pod):
                in_force = self._hierarchy.rate(folder, record.device)
                count = sum((self._hierarchy.count(place, record.device) for place in places(self._hierarchy, folder)), count)
        pod, device, burst = record.pod, record.device, record.burst
        return [Row(claim.volume, pod, target, device, count, claim.limits, in_force, burst) for target, claim in record.claims.items()]


def hierarchy_or_none(root: Path) -> Hierarchy | None:
    """What throttles on this machine, with cgroups at `root`; None for nothing."""
    try:
        return hierarchy_at(root)
    except UnsupportedByNode:
        return None


def _free(volume: str, target: str, pod: str, mounts: list[Mount]) -> Row:
    mount = at(mounts, target)
    return Row(volume, pod, target, mount.device if mount else "", Count())


@dataclass(frozen=True)
class Reading:
    """A row and how fast it was read since the look before: I/Os and bytes a second."""

    row: Row
    iops: float
    bytes_per_second: float

    def facts(self) -> dict[str, object]:
        """For programs: plain values, None where there is no such thing."""
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
            "in_force_iops": row.in_force.iops if row.in_force else None,
            "in_force_bytes_per_second": row.in_force.bytes_per_second if row.in_force else None,
            "credit": None if row.burst is None or row.burst.credit is None else round(max(0, row.burst.credit)),
            "metered_ios": None if row.burst is None or not burst else round(row.burst.metered),
        }

    def words(self) -> tuple[str, ...]:
        """For people, as the columns of `TITLES`."""
        facts, limits = self.facts(), self.row.limits
        numbers = (f"{self.iops:.0f}", f"{self.bytes_per_second / MIB:.1f}")
        spent = tuple("" if facts[key] is None else str(facts[key]) for key in ("credit", "metered_ios"))
        in_force = "" if limits is None else str(self.row.in_force)
        return (self.row.volume, self.row.pod, str(limits or "none"), in_force, *numbers, *spent)


TITLES = ("volume", "pod", "limits", "in force", "IOPS", "MiB/s", "credit left", "burst I/O")


class Watch:
    """Looks again and again at a node; each look gives the rates since the one before."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._at = time.monotonic()
        self._before = _counts(node.rows())

    def look(self) -> list[Reading]:
        """The rows with the rates since the last look, 0 for those that are new."""
        rows, now = self._node.rows(), time.monotonic()
        seconds, before = now - self._at, self._before
        self._at, self._before = now, _counts(rows)
        return [_reading(row, before.get((row.target, row.device), row.count), seconds) for row in rows]


def _counts(rows: list[Row]) -> Mapping[tuple[str, str], Count]:
    return {(row.target, row.device): row.count for row in rows}


def _reading(row: Row, before: Count, seconds: float) -> Reading:
    done = row.count - before
    return Reading(row, max(0, done.ios) / seconds, max(0, done.bytes) / seconds)
