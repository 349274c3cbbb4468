"""Limits on what pods read from volumes: from before a pod's containers start until the volume is taken away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import CgroupHierarchy
from csi.linux.diskstats import reads_by_device
from csi.performance.limits import Limits, Rate
from node_plugin.throttle.burst import BurstState
from node_plugin.throttle.group import GroupMember, ThrottleGroup
from node_plugin.throttle.limit_enforcer import LimitEnforcer, ReadCounters
from node_plugin.throttle.records import GroupRecord, GroupRecords

log = logging.getLogger("datacache.throttle")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NO_POD = "no pod is known for the path: neither does it hold pods/<uid>/volumes, nor does the context name csi.storage.k8s.io/pod.uid"


@dataclass(frozen=True)
class LimitRequest:
    """The volume `volume` at the path `target`, in the pod `pod` (its uid, "" where none is known), read from `device` ("major:minor").

    `limits` are None for none; at a start of the plugin, `keep_recorded` limits are those that its former life held.
    """

    volume: str
    target: str
    pod: str
    device: str
    limits: Limits | None
    keep_recorded: bool = False


@dataclass(frozen=True)
class AppliedLimit:
    """What holds for a volume at a path of the pod `pod` (its uid), read from `device`.

    `limits` are its own; `rate`, `group_limits` and `burst` those of its pod on that device; `problem` is why none is in
    force, "" where one is; `per_container` whether each container of the pod holds the limit by itself.
    """

    volume: str
    pod: str
    device: str
    limits: Limits
    rate: Rate
    group_limits: Limits | None
    burst: BurstState
    problem: str = ""
    per_container: bool = False


def seconds_since_boot() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Throttle:
    """The limits of this node's volumes. Thread-safe.

    `hierarchy` is what can throttle, or the error that says why nothing can; `required` refuses volumes whose limits cannot be held.
    """

    def __init__(
        self,
        hierarchy: CgroupHierarchy | UnsupportedByNode,
        records: GroupRecords,
        required: bool = False,
        read_counters: ReadCounters = reads_by_device,
        now: Callable[[], float] = seconds_since_boot,
    ) -> None:
        self._records, self._required, self._now = records, required, now
        self._boot = _BOOT_ID.read_text().strip()
        self._lock = threading.RLock()
        self._groups: dict[tuple[str, str], ThrottleGroup] = {}
        self._group_by_target: dict[str, ThrottleGroup] = {}
        self._has_unsaved = False
        self._unsupported_reason = str(hierarchy) if isinstance(hierarchy, UnsupportedByNode) else ""
        self._enforcer: LimitEnforcer | None = None
        if not isinstance(hierarchy, UnsupportedByNode):
            try:
                self._enforcer = LimitEnforcer(
                    hierarchy, self._groups.values(), self._lock, read_counters, now, self._save_group
                )
            except UnsupportedByNode as error:
                self._unsupported_reason = str(error)
        if self._unsupported_reason:
            log.warning("no limits on this node", extra={"fields": {"reason": self._unsupported_reason}})

    def apply(self, request: LimitRequest) -> None:
        """Put the limits of a volume in force where it is shown; what is held there already is renewed.

        Raises UnsupportedByNode, holding nothing, where limits are required and known to be impossible.
        """
        with self._lock:
            group, joined = self._join_group(request)
            self._update_group(group, joined)
            try:
                self._check_required(group, request.limits)
            except UnsupportedByNode:
                self.release(request.target)
                raise

    def resume(self, requests: Iterable[LimitRequest]) -> None:
        """Hold all that is shown at a start of the plugin; limits of pods that show no volume any more go."""
        with self._lock:
            # Only when all its volumes are there is the sum of a pod what it was.
            for group in {id(group): group for group, _ in map(self._join_group, requests)}.values():
                self._update_group(group)
            self._clear_stale_limits()

    def _join_group(self, request: LimitRequest) -> tuple[ThrottleGroup, Limits | None]:
        """The group that the volume belongs to, and its limits where it is new there."""
        # Pods that nobody knows have nothing in common.
        key = (request.pod, request.device) if request.pod else ("", request.target)
        if self._group_by_target.get(request.target) not in (None, self._groups.get(key)):
            self.release(request.target)
        group = self._groups.get(key)
        recorded = (
            self._records.get(*key) if request.pod and (group is None or request.keep_recorded) else None
        )
        group = group or self._create_group(key, request, recorded)
        limits = request.limits
        if request.keep_recorded and recorded and request.target in recorded.members:
            limits = recorded.members[request.target].limits
        joined = limits if request.target not in group.members else None
        group.members[request.target] = GroupMember(request.volume, limits)
        self._group_by_target[request.target] = group
        return group, joined

    def _create_group(
        self, key: tuple[str, str], request: LimitRequest, recorded: GroupRecord | None
    ) -> ThrottleGroup:
        group = self._groups[key] = ThrottleGroup(request.pod, request.device)
        if recorded and recorded.boot == self._boot and self._enforcer:
            group.restore(recorded, self._enforcer.hierarchy.root)
        return group

    def _update_group(self, group: ThrottleGroup, joined: Limits | None = None, left: bool = False) -> None:
        changed = group.update_limits(self._now(), joined, left)
        if group.limits or changed:
            self._record_and_enforce(group)
        if changed:
            fields = {
                "pod": group.pod,
                "device": group.device,
                "volumes": sorted(claim.volume for claim in group.members.values()),
            }
            limit_fields = {
                "limits": group.limits or "none",
                "notes": "; ".join(group.limits.notes) if group.limits else "",
            }
            log.info(
                "limits",
                extra={
                    "fields": {
                        **fields,
                        **limit_fields,
                        "in force": not group.problem,
                        "reason": group.problem,
                    }
                },
            )

    def _record_and_enforce(self, group: ThrottleGroup) -> None:
        """The record first: what a killed plugin leaves in the kernel must be known to the next."""
        if self._enforcer is None or not group.pod:
            group.problem = self._unsupported_reason or NO_POD
            return
        if group.limits:
            self._save_group(group)
        self._enforcer.apply(group)
        if (
            group.is_metered or not group.limits
        ):  # what was read before the limit is known now, or there is nothing to remember
            self._save_group(group)

    def _save_group(self, group: ThrottleGroup) -> None:
        """Record the group; a store that takes no file must not keep a limit from being in force."""
        if self._enforcer is None or not group.pod:
            return
        group.saved_at = self._now()
        try:
            self._records.put(group.to_record(self._enforcer.hierarchy.root, self._boot))
        except OSError as error:
            if not self._has_unsaved:
                log.error(
                    "limits cannot be recorded; burst credits begin anew when the plugin restarts",
                    extra={"fields": {"reason": error.strerror}},
                )
            self._has_unsaved = True
        else:
            self._has_unsaved = False

    def _check_required(self, group: ThrottleGroup, limits: Limits | None) -> None:
        problem = _describe_problem(group)
        if self._required and limits and problem and not group.waits_for_cgroup:
            advice = "remove its performance keys, or --require-throttle from the node plugin"
            raise UnsupportedByNode(f"the volume's limits cannot be held: {problem}; {advice}")

    def release(self, *targets: str) -> None:
        """Take the limits of what was shown at `targets` out of force; one that holds nothing is no error."""
        with self._lock:
            for target in targets:
                group = self._group_by_target.pop(target, None)
                if group is None:
                    continue
                member = group.members.pop(target)
                self._log_metered(member, group)
                self._update_group(group, left=True)
                if not group.members:
                    del self._groups[(group.pod, group.device) if group.pod else ("", target)]

    def _log_metered(self, member: GroupMember, group: ThrottleGroup) -> None:
        if self._enforcer and group.is_metered:
            self._enforcer.charge(group)
        if group.burst.metered_ios >= 1:
            fields = {
                "volume": member.volume,
                "pod": group.pod,
                "device": group.device,
                "ios": round(group.burst.metered_ios),
            }
            log.info("burst I/O metered", extra={"fields": fields})

    def change_limits(self, volume: str, limits: Limits | None) -> None:
        """Put other limits of a volume in force, wherever it is shown."""
        with self._lock:
            for group in list(self._groups.values()):
                claims = [claim for claim in group.members.values() if claim.volume == volume]
                for claim in claims:
                    claim.limits = limits
                if claims:
                    self._update_group(group)

    def get_applied(self, target: str) -> AppliedLimit | None:
        """What holds for the volume at `target`, None for one without limits."""
        with self._lock:
            group = self._group_by_target.get(target)
            return _applied_limit(group, group.members[target], self._enforcer) if group else None

    def list_applied(self) -> list[AppliedLimit]:
        """What holds for every volume with limits at every path."""
        with self._lock:
            return [held for target in self._group_by_target if (held := self.get_applied(target))]

    def _clear_stale_limits(self) -> None:
        for record in list(self._records.all()):
            if (record.pod, record.device) not in self._groups:
                self._clear_limit(record)

    def _clear_limit(self, record: GroupRecord) -> None:
        """Take a limit out of force that a killed plugin left."""
        if self._enforcer and record.boot == self._boot:
            self._enforcer.apply(ThrottleGroup(record.pod, record.device))
        self._records.put(GroupRecord(record.pod, record.device))

    def close(self) -> None:
        """Stop keeping; limits stay in force."""
        if self._enforcer:
            self._enforcer.close()


def _applied_limit(
    group: ThrottleGroup, member: GroupMember, enforcer: LimitEnforcer | None
) -> AppliedLimit | None:
    if member.limits is None:
        return None
    per_container = enforcer is not None and enforcer.hierarchy.is_flat
    problem = _describe_problem(group)
    return AppliedLimit(
        member.volume,
        group.pod,
        group.device,
        member.limits,
        group.current_rate,
        group.limits,
        group.burst,
        problem,
        per_container,
    )


def _describe_problem(group: ThrottleGroup) -> str:
    if not group.problem and group.limits is None:
        return "the pod shows another volume without limits from the same device; it gets one of its own when it is staged anew"
    return group.problem
