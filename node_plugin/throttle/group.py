"""The volumes of one pod on one device: they share one rule in the kernel, so their limits add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import Count, Hierarchy
from csi.linux.cgroups.pod_cgroups import tree
from csi.performance.limits import UNLIMITED, Limits, Rate, together
from node_plugin.throttle.burst import Burst
from node_plugin.throttle.meter import Meter
from node_plugin.throttle.records import Claimed, GroupRecord


@dataclass
class Claim:
    """A volume's claim to its limits, None for none."""

    volume: str
    limits: Limits | None = None


@dataclass
class Group:
    """The claims (by target path) of the pod `pod` (a uid) on `device`. Not thread-safe: `Throttle` guards it.

    `counts` has what each cgroup had read at the time `at` (seconds since boot); `problem` says why no limit is in force, "" where one is, and
    `waits` whether it only waits for the pod's cgroup. `saved` is when it was last recorded.
    """

    pod: str
    device: str
    claims: dict[str, Claim] = field(default_factory=dict)
    burst: Burst = field(default_factory=Burst)
    counts: dict[Path, Count] = field(default_factory=dict)
    at: float = 0.0
    saved: float = 0.0
    problem: str = ""
    waits: bool = False
    limits: Limits | None = None

    def restore(self, record: GroupRecord, root: Path) -> None:
        """Go on where a former life of the plugin was cut."""
        self.burst, self.at, self.limits = record.burst, record.at, record.limits
        self.counts = {root / path: count for path, count in record.counts.items()}

    def record(self, root: Path, boot: str) -> GroupRecord:
        """What a later life has to know."""
        claims = {target: Claimed(claim.volume, claim.limits) for target, claim in self.claims.items() if claim.limits}
        counts = {str(path.relative_to(root)): count for path, count in self.counts.items()}
        return GroupRecord(self.pod, self.device, claims if self.limits else {}, self.burst, counts, self.at, boot)

    def settle(self, now: float, joined: Limits | None = None, left: bool = False) -> bool:
        """Take the sum of the claims as the limits; whether it changed. A claim without limits frees them all: the kernel cannot tell them apart.

        `joined` are the limits of a new claim, which brings its full credit; one that `left` takes its share of what is left.
        """
        wanted = [claim.limits for claim in self.claims.values()]
        given = [limits for limits in wanted if limits]
        limits = together(*given) if given and len(given) == len(wanted) else None
        if limits == self.limits:
            return False
        if limits is None:
            self.burst, self.counts = Burst(), {}
        elif not self.bursts:
            self.burst, self.counts, self.at = replace(Burst.begin(limits), meter=Meter(self.burst.metered)), {}, now
        else:
            self.burst = self._changed(limits, joined, left)
        self.limits = limits
        return True

    def _changed(self, limits: Limits, joined: Limits | None, left: bool) -> Burst:
        before = self.limits.credit if self.limits else None
        if joined and joined.credit:
            return self.burst.joined(limits, joined.credit)
        if left and before and limits.credit:
            return self.burst.reduced(limits, limits.credit / before)
        return self.burst.under(limits)

    @property
    def rate(self) -> Rate:
        """The limit that should be in force now."""
        return self.burst.rate(self.limits) if self.limits else UNLIMITED

    @property
    def bursts(self) -> bool:
        """Whether somebody has to look at the counters."""
        return self.limits is not None and self.limits.burst is not None

    def apply(self, hierarchy: Hierarchy, folders: list[Path]) -> None:
        """Put the rate in force in the pod's cgroup `folders`; sets `problem` where the kernel refuses, and goes on with the others."""
        self._count_from_here(hierarchy, folders)
        problems = [problem for folder in folders for problem in self._refused(hierarchy, folder)]
        self.problem, self.waits = next(iter(problems), ""), False

    def _refused(self, hierarchy: Hierarchy, folder: Path) -> Iterator[str]:
        try:
            if self.limits:
                hierarchy.prepare(folder)
        except UnsupportedByNode as error:
            yield str(error)
        for place in places(hierarchy, folder):
            try:
                hierarchy.limit(place, self.device, self.rate)
            except UnsupportedByNode as error:
                yield str(error)

    def _count_from_here(self, hierarchy: Hierarchy, folders: list[Path]) -> None:
        """Note what was read before the limit; of a cgroup that came later everything counts."""
        if not self.bursts:
            return
        later = bool(self.counts)
        for place in (place for folder in folders for place in places(hierarchy, folder)):
            self.counts.setdefault(place, Count() if later else hierarchy.count(place, self.device))

    def look(self, hierarchy: Hierarchy, now: float, idle: bool) -> bool:
        """Charge what was read since the last look to the burst; whether the rate changed. `idle`: the device says that nothing was."""
        if idle and self.burst.at_rest(self.limits):
            self.at = now
            return False
        before = self.rate
        used = Count() if idle else self._used(hierarchy)
        if self.limits:
            self.burst = self.burst.after(self.limits, used, now - self.at)
        self.at = now
        return self.rate != before

    def _used(self, hierarchy: Hierarchy) -> Count:
        used = Count()
        for place, before in list(self.counts.items()):
            now = hierarchy.count(place, self.device)
            if now == Count() and not place.exists():
                del self.counts[place]
                continue
            self.counts[place] = now
            # Less than before: another cgroup of that name.
            used += now - before if now.ios >= before.ios else now
        return used


def places(hierarchy: Hierarchy, pod: Path) -> list[Path]:
    """The cgroups of a pod that need a limit of their own."""
    return list(tree(pod)) if hierarchy.flat else [pod]
