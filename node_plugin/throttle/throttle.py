"""Limits on what pods read from volumes: from before a pod's containers start until the volume is taken away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import Hierarchy
from csi.linux.diskstats import reads_by_device
from csi.performance.limits import Limits, Rate
from node_plugin.throttle.burst import Burst
from node_plugin.throttle.group import Claim, Group
from node_plugin.throttle.limit_enforcer import Keeper, Reads
from node_plugin.throttle.records import GroupRecord, GroupRecords

log = logging.getLogger("datacache.throttle")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NO_POD = "no pod is known for the path: neither does it hold pods/<uid>/volumes, nor does the context name csi.storage.k8s.io/pod.uid"


@dataclass(frozen=True)
class Wanted:
    """The volume `volume` at the path `target`, in the pod `pod` (its uid, "" where none is known), read from `device` ("major:minor").

    `limits` are None for none; at a start of the plugin, `unknown` limits are those that its former life held.
    """

    volume: str
    target: str
    pod: str
    device: str
    limits: Limits | None
    unknown: bool = False


@dataclass(frozen=True)
class Held:
    """What holds for a volume at a path of the pod `pod` (its uid), read from `device`.

    `limits` are its own; `rate`, `together` and `burst` those of its pod on that device; `problem` is why none is in
    force, "" where one is; `each_container` whether each container of the pod holds the limit by itself.
    """

    volume: str
    pod: str
    device: str
    limits: Limits
    rate: Rate
    together: Limits | None
    burst: Burst
    problem: str = ""
    each_container: bool = False


def boot_seconds() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Throttle:
    """The limits of this node's volumes. Thread-safe.

    `hierarchy` is what can throttle, or the error that says why nothing can; `required` refuses volumes whose limits cannot be held.
    """

    def __init__(
        self,
        hierarchy: Hierarchy | UnsupportedByNode,
        records: GroupRecords,
        required: bool = False,
        reads: Reads = reads_by_device,
        now: Callable[[], float] = boot_seconds,
    ) -> None:
        self._records, self._required, self._now = records, required, now
        self._boot = _BOOT_ID.read_text().strip()
        self._guard = threading.RLock()
        self._groups: dict[tuple[str, str], Group] = {}
        self._targets: dict[str, Group] = {}
        self._unsaved = False
        self._missing = str(hierarchy) if isinstance(hierarchy, UnsupportedByNode) else ""
        self._keeper: Keeper | None = None
        if not isinstance(hierarchy, UnsupportedByNode):
            try:
                self._keeper = Keeper(hierarchy, self._groups.values(), self._guard, reads, now, self._save)
            except UnsupportedByNode as error:
                self._missing = str(error)
        if self._missing:
            log.warning("no limits on this node", extra={"fields": {"reason": self._missing}})

    def hold(self, wanted: Wanted) -> None:
        """Put the limits of a volume in force where it is shown; what is held there already is renewed.

        Raises UnsupportedByNode, holding nothing, where limits are required and known to be impossible.
        """
        with self._guard:
            group, joined = self._claim(wanted)
            self._settle(group, joined)
            try:
                self._refuse(group, wanted.limits)
            except UnsupportedByNode:
                self.release(wanted.target)
                raise

    def resume(self, wanted: Iterable[Wanted]) -> None:
        """Hold all that is shown at a start of the plugin; limits of pods that show no volume any more go."""
        with self._guard:
            # Only when all its volumes are there is the sum of a pod what it was.
            for group in {id(group): group for group, _ in map(self._claim, wanted)}.values():
                self._settle(group)
            self._sweep()

    def _claim(self, wanted: Wanted) -> tuple[Group, Limits | None]:
        """The group that the volume belongs to, and its limits where it is new there."""
        # Pods that nobody knows have nothing in common.
        key = (wanted.pod, wanted.device) if wanted.pod else ("", wanted.target)
        if self._targets.get(wanted.target) not in (None, self._groups.get(key)):
            self.release(wanted.target)
        group = self._groups.get(key)
        known = self._records.get(*key) if wanted.pod and (group is None or wanted.unknown) else None
        group = group or self._begun(key, wanted, known)
        limits = wanted.limits
        if wanted.unknown and known and wanted.target in known.claims:
            limits = known.claims[wanted.target].limits
        joined = limits if wanted.target not in group.claims else None
        group.claims[wanted.target] = Claim(wanted.volume, limits)
        self._targets[wanted.target] = group
        return group, joined

    def _begun(self, key: tuple[str, str], wanted: Wanted, known: GroupRecord | None) -> Group:
        group = self._groups[key] = Group(wanted.pod, wanted.device)
        if known and known.boot == self._boot and self._keeper:
            group.restore(known, self._keeper.hierarchy.root)
        return group

    def _settle(self, group: Group, joined: Limits | None = None, left: bool = False) -> None:
        changed = group.settle(self._now(), joined, left)
        if group.limits or changed:
            self._enforce(group)
        if changed:
            fields = {"pod": group.pod, "device": group.device, "volumes": sorted(claim.volume for claim in group.claims.values())}
            said = {"limits": group.limits or "none", "notes": "; ".join(group.limits.notes) if group.limits else ""}
            log.info("limits", extra={"fields": {**fields, **said, "in force": not group.problem, "reason": group.problem}})

    def _enforce(self, group: Group) -> None:
        """The record first: what a killed plugin leaves in the kernel must be known to the next."""
        if self._keeper is None or not group.pod:
            group.problem = self._missing or NO_POD
            return
        if group.limits:
            self._save(group)
        self._keeper.apply(group)
        if group.bursts or not group.limits:  # what was read before the limit is known now, or there is nothing to remember
            self._save(group)

    def _save(self, group: Group) -> None:
        """Record the group; a store that takes no file must not keep a limit from being in force."""
        if self._keeper is None or not group.pod:
            return
        group.saved = self._now()
        try:
            self._records.put(group.record(self._keeper.hierarchy.root, self._boot))
        except OSError as error:
            if not self._unsaved:
                log.error(
                    "limits cannot be recorded; burst credits begin anew when the plugin restarts", extra={"fields": {"reason": error.strerror}}
                )
            self._unsaved = True
        else:
            self._unsaved = False

    def _refuse(self, group: Group, limits: Limits | None) -> None:
        problem = _problem(group)
        if self._required and limits and problem and not group.waits:
            advice = "remove its performance keys, or --require-throttle from the node plugin"
            raise UnsupportedByNode(f"the volume's limits cannot be held: {problem}; {advice}")

    def release(self, *targets: str) -> None:
        """Take the limits of what was shown at `targets` out of force; one that holds nothing is no error."""
        with self._guard:
            for target in targets:
                group = self._targets.pop(target, None)
                if group is None:
                    continue
                claim = group.claims.pop(target)
                self._say_metered(claim, group)
                self._settle(group, left=True)
                if not group.claims:
                    del self._groups[(group.pod, group.device) if group.pod else ("", target)]

    def _say_metered(self, claim: Claim, group: Group) -> None:
        if self._keeper and group.bursts:
            self._keeper.charge(group)
        if group.burst.metered >= 1:
            fields = {"volume": claim.volume, "pod": group.pod, "device": group.device, "ios": round(group.burst.metered)}
            log.info("burst I/O metered", extra={"fields": fields})

    def renew(self, volume: str, limits: Limits | None) -> None:
        """Put other limits of a volume in force, wherever it is shown."""
        with self._guard:
            for group in list(self._groups.values()):
                claims = [claim for claim in group.claims.values() if claim.volume == volume]
                for claim in claims:
                    claim.limits = limits
                if claims:
                    self._settle(group)

    def held(self, target: str) -> Held | None:
        """What holds for the volume at `target`, None for one without limits."""
        with self._guard:
            group = self._targets.get(target)
            return _held(group, group.claims[target], self._keeper) if group else None

    def all_held(self) -> list[Held]:
        """What holds for every volume with limits at every path."""
        with self._guard:
            return [held for target in self._targets if (held := self.held(target))]

    def _sweep(self) -> None:
        for record in list(self._records.all()):
            if (record.pod, record.device) not in self._groups:
                self._clear(record)

    def _clear(self, record: GroupRecord) -> None:
        """Take a limit out of force that a killed plugin left."""
        if self._keeper and record.boot == self._boot:
            self._keeper.apply(Group(record.pod, record.device))
        self._records.put(GroupRecord(record.pod, record.device))

    def close(self) -> None:
        """Stop keeping; limits stay in force."""
        if self._keeper:
            self._keeper.close()


def _held(group: Group, claim: Claim, keeper: Keeper | None) -> Held | None:
    if claim.limits is None:
        return None
    each = keeper is not None and keeper.hierarchy.flat
    problem = _problem(group)
    return Held(claim.volume, group.pod, group.device, claim.limits, group.rate, group.limits, group.burst, problem, each)


def _problem(group: Group) -> str:
    if not group.problem and group.limits is None:
        return "the pod shows another volume without limits from the same device; it gets one of its own when it is staged anew"
    return group.problem
