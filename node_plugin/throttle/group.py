"""The volumes of one pod on one device, which share one kernel rule, so that their limits are added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import CgroupHierarchy, ReadCount
from csi.linux.cgroups.pod_cgroups import walk_folders
from csi.performance.limits import UNLIMITED, Limits, Rate, sum_limits
from node_plugin.throttle.burst import BurstState
from node_plugin.throttle.meter import BurstMeter
from node_plugin.throttle.records import GroupRecord, RecordedMember


@dataclass
class GroupMember:
    """A volume of the group and its limits, None for none."""

    volume: str
    limits: Limits | None = None


@dataclass
class ThrottleGroup:
    """The members (by target path) of the pod `pod` (a uid) on `device`. `Throttle` holds a lock for it.

    `counts` has the reads of each cgroup at the time `counted_at` (seconds since boot). `problem` is why no
    limit is in force, "" if one is; `waits_for_cgroup` is whether that is only because the pod's cgroup does
    not exist yet. `saved_at` is when the group was last recorded.
    """

    pod: str
    device: str
    members: dict[str, GroupMember] = field(default_factory=dict)
    burst: BurstState = field(default_factory=BurstState)
    counts: dict[Path, ReadCount] = field(default_factory=dict)
    counted_at: float = 0.0
    saved_at: float = 0.0
    problem: str = ""
    waits_for_cgroup: bool = False
    limits: Limits | None = None

    def restore(self, record: GroupRecord, root: Path) -> None:
        """Restore burst, limits and counts as an earlier process of the plugin recorded them."""
        self.burst, self.counted_at, self.limits = record.burst, record.counted_at, record.limits
        # Stored relative to the root, which a container may mount elsewhere.
        self.counts = {root / path: count for path, count in record.counts.items()}

    def to_record(self, root: Path, boot: str) -> GroupRecord:
        """Return the record for a later process of the plugin; `boot` is the boot's id."""
        members = {
            target: RecordedMember(member.volume, member.limits)
            for target, member in self.members.items()
            if member.limits
        }
        counts = {str(path.relative_to(root)): count for path, count in self.counts.items()}
        return GroupRecord(
            self.pod, self.device, members if self.limits else {}, self.burst, counts, self.counted_at, boot
        )

    def update_limits(self, now: float, joined: Limits | None = None, left: bool = False) -> bool:
        """Set the sum of the members' limits as the limits; return whether it changed.

        A member without limits frees them all, since the kernel cannot tell their I/O apart. `joined` are the
        limits of a new member, which brings its full credit. A member that `left` takes its share of the
        credit.
        """
        all_limits = [member.limits for member in self.members.values()]
        limited = [limits for limits in all_limits if limits]
        limits = sum_limits(*limited) if limited and len(limited) == len(all_limits) else None
        if limits == self.limits:
            return False
        if limits is None:
            self.burst = BurstState()
            self.counts = {}
        elif not self.is_metered:
            # The credit starts full; the total of the meter, a Prometheus counter, continues.
            meter = BurstMeter(self.burst.metered_ios)
            self.burst = replace(BurstState.with_full_credit(limits), meter=meter)
            self.counts = {}
            self.counted_at = now
        else:
            self.burst = self._burst_after_change(limits, joined, left)
        self.limits = limits
        return True

    def _burst_after_change(self, limits: Limits, joined: Limits | None, left: bool) -> BurstState:
        previous_credit = self.limits.credit if self.limits else None
        if joined and joined.credit:
            return self.burst.with_added_credit(limits, joined.credit)
        if left and previous_credit and limits.credit:
            return self.burst.with_reduced_credit(limits, limits.credit / previous_credit)
        return self.burst.with_limits(limits)

    @property
    def current_rate(self) -> Rate:
        """The limit that should be in force at the moment."""
        return self.burst.current_rate(self.limits) if self.limits else UNLIMITED

    @property
    def is_metered(self) -> bool:
        """Whether the limits have a burst, so that counters must be read."""
        return self.limits is not None and self.limits.burst is not None

    def apply(self, hierarchy: CgroupHierarchy, folders: list[Path]) -> None:
        """Set the current rate in the pod's cgroup `folders`.

        If the kernel refuses one, sets `problem` and goes on with the others.
        """
        self._start_counting(hierarchy, folders)
        problems = [problem for folder in folders for problem in self._apply_to_folder(hierarchy, folder)]
        self.problem = next(iter(problems), "")
        self.waits_for_cgroup = False

    def _apply_to_folder(self, hierarchy: CgroupHierarchy, folder: Path) -> Iterator[str]:
        try:
            # Each time, since systemd may withdraw the io controller from a cgroup.
            if self.limits:
                hierarchy.enable_throttling(folder)
        except UnsupportedByNode as error:
            yield str(error)
        for cgroup in limited_cgroups(hierarchy, folder):
            try:
                hierarchy.set_limit(cgroup, self.device, self.current_rate)
            except UnsupportedByNode as error:
                yield str(error)

    def _start_counting(self, hierarchy: CgroupHierarchy, folders: list[Path]) -> None:
        """Store the counters of new cgroups, so that reads before the limit are not charged.

        Of a cgroup that appeared later all reads are charged: it started under the limit.
        """
        if not self.is_metered:
            return
        has_started = bool(self.counts)
        for cgroup in (cgroup for folder in folders for cgroup in limited_cgroups(hierarchy, folder)):
            count = ReadCount() if has_started else hierarchy.read_count(cgroup, self.device)
            self.counts.setdefault(cgroup, count)

    def charge_reads(self, hierarchy: CgroupHierarchy, now: float, idle: bool) -> bool:
        """Charge the reads since the last call to the burst; return whether the rate changed.

        `idle` is whether the device's own counters have not changed, so that those of cgroups need not be
        read.
        """
        if idle and self.burst.is_at_rest(self.limits):
            self.counted_at = now
            return False
        before = self.current_rate
        used = ReadCount() if idle else self._count_new_reads(hierarchy)
        if self.limits:
            self.burst = self.burst.charge(self.limits, used, now - self.counted_at)
        self.counted_at = now
        return self.current_rate != before

    def _count_new_reads(self, hierarchy: CgroupHierarchy) -> ReadCount:
        used = ReadCount()
        for cgroup, before in list(self.counts.items()):
            now = hierarchy.read_count(cgroup, self.device)
            if now == ReadCount() and not cgroup.exists():
                del self.counts[cgroup]
                continue
            self.counts[cgroup] = now
            # Less than before: the cgroup was removed and another of that name created.
            used += now - before if now.ios >= before.ios else now
        return used


def limited_cgroups(hierarchy: CgroupHierarchy, pod: Path) -> list[Path]:
    """Return the cgroups of a pod that need a limit of their own.

    On a flat hierarchy a limit does not include child cgroups.
    """
    return list(walk_folders(pod)) if hierarchy.is_flat else [pod]
