"""The volumes of one pod on one device: they share one rule in the kernel, so their limits add up."""

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
    """A volume's claim to its limits, None for none."""

    volume: str
    limits: Limits | None = None


@dataclass
class ThrottleGroup:
    """The claims (by target path) of the pod `pod` (a uid) on `device`. Not thread-safe: `Throttle` guards it.

    `counts` has what each cgroup had read at the time `counted_at` (seconds since boot); `problem` says why no limit is in force, "" where one is, and
    `waits_for_cgroup` whether it only waits for the pod's cgroup. `saved_at` is when it was last recorded.
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
        """Go on where a former life of the plugin was cut."""
        self.burst, self.counted_at, self.limits = record.burst, record.counted_at, record.limits
        self.counts = {root / path: count for path, count in record.counts.items()}

    def to_record(self, root: Path, boot: str) -> GroupRecord:
        """What a later life has to know."""
        claims = {
            target: RecordedMember(claim.volume, claim.limits)
            for target, claim in self.members.items()
            if claim.limits
        }
        counts = {str(path.relative_to(root)): count for path, count in self.counts.items()}
        return GroupRecord(
            self.pod, self.device, claims if self.limits else {}, self.burst, counts, self.counted_at, boot
        )

    def update_limits(self, now: float, joined: Limits | None = None, left: bool = False) -> bool:
        """Take the sum of the claims as the limits; whether it changed. A claim without limits frees them all: the kernel cannot tell them apart.

        `joined` are the limits of a new claim, which brings its full credit; one that `left` takes its share of what is left.
        """
        all_limits = [claim.limits for claim in self.members.values()]
        limited = [limits for limits in all_limits if limits]
        limits = sum_limits(*limited) if limited and len(limited) == len(all_limits) else None
        if limits == self.limits:
            return False
        if limits is None:
            self.burst, self.counts = BurstState(), {}
        elif not self.is_metered:
            self.burst, self.counts, self.counted_at = (
                replace(BurstState.with_full_credit(limits), meter=BurstMeter(self.burst.metered_ios)),
                {},
                now,
            )
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
        """The limit that should be in force now."""
        return self.burst.current_rate(self.limits) if self.limits else UNLIMITED

    @property
    def is_metered(self) -> bool:
        """Whether somebody has to look at the counters."""
        return self.limits is not None and self.limits.burst is not None

    def apply(self, hierarchy: CgroupHierarchy, folders: list[Path]) -> None:
        """Put the rate in force in the pod's cgroup `folders`; sets `problem` where the kernel refuses, and goes on with the others."""
        self._start_counting(hierarchy, folders)
        problems = [problem for folder in folders for problem in self._apply_to_folder(hierarchy, folder)]
        self.problem, self.waits_for_cgroup = next(iter(problems), ""), False

    def _apply_to_folder(self, hierarchy: CgroupHierarchy, folder: Path) -> Iterator[str]:
        try:
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
        """Note what was read before the limit; of a cgroup that came later everything counts."""
        if not self.is_metered:
            return
        later = bool(self.counts)
        for cgroup in (cgroup for folder in folders for cgroup in limited_cgroups(hierarchy, folder)):
            self.counts.setdefault(
                cgroup, ReadCount() if later else hierarchy.read_count(cgroup, self.device)
            )

    def charge_reads(self, hierarchy: CgroupHierarchy, now: float, idle: bool) -> bool:
        """Charge what was read since the last look to the burst; whether the rate changed. `idle`: the device says that nothing was."""
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
            # Less than before: another cgroup of that name.
            used += now - before if now.ios >= before.ios else now
        return used


def limited_cgroups(hierarchy: CgroupHierarchy, pod: Path) -> list[Path]:
    """The cgroups of a pod that need a limit of their own."""
    return list(walk_folders(pod)) if hierarchy.is_flat else [pod]
