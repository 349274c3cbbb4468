"""I/O limits on what pods read from volumes, from before their containers start until unpublish."""

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
NO_POD = (
    "no pod is known for the path: it does not contain pods/<uid>/volumes, "
    "and the volume context has no csi.storage.k8s.io/pod.uid; set podInfoOnMount in the CSIDriver"
)


@dataclass(frozen=True)
class LimitRequest:
    """Limits for the volume `volume` at the path `target`, read from `device` ("major:minor").

    `pod` is the pod's uid, "" if unknown; `limits` are None for none. When the plugin starts, `keep_recorded`
    means the limits that an earlier process recorded.
    """

    volume: str
    target: str
    pod: str
    device: str
    limits: Limits | None
    keep_recorded: bool = False


@dataclass(frozen=True)
class LimitStatus:
    """The limit in force for a volume in the pod `pod` (its uid), read from `device`.

    `limits` are the volume's own; `rate`, `group_limits` and `burst` are those of its pod on that device.
    `problem` is why no limit is in force, "" if one is. `per_container` is whether each container has the
    limit for itself.
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
    """Return the seconds since boot, including time in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Throttle:
    """The limits of this node's volumes. Thread-safe.

    `hierarchy` is the cgroup hierarchy, or the error why none can throttle. `required` refuses volumes whose
    limits cannot be enforced.
    """

    def __init__(
        self,
        hierarchy: CgroupHierarchy | UnsupportedByNode,
        records: GroupRecords,
        required: bool = False,
        read_counters: ReadCounters = reads_by_device,
        now: Callable[[], float] = seconds_since_boot,
    ) -> None:
        self._records, self._required = records, required
        self._now = now
        self._boot = _BOOT_ID.read_text().strip()
        # Reentrant: `apply` calls `release`, and the enforcer, which takes it too, calls back `_save_group`.
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
            log.warning(
                "I/O limits not supported by this node",
                extra={"fields": {"reason": self._unsupported_reason}},
            )

    def apply(self, request: LimitRequest) -> None:
        """Enforce or renew the limits of a volume at a target.

        Raises UnsupportedByNode, and enforces nothing, if limits are required and cannot be enforced.
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
        """Enforce the limits of all published volumes at the plugin's start, and clear stale ones."""
        with self._lock:
            # Only after all its volumes have joined does the sum of a pod equal the recorded one.
            for group in {id(group): group for group, _ in map(self._join_group, requests)}.values():
                self._update_group(group)
            self._clear_stale_limits()

    def _join_group(self, request: LimitRequest) -> tuple[ThrottleGroup, Limits | None]:
        """Add a volume to its group; return the group, and the limits if the volume is new there."""
        # Without a pod there is no cgroup to share: each such target is a group of its own.
        key = (request.pod, request.device) if request.pod else ("", request.target)
        if self._group_by_target.get(request.target) not in (None, self._groups.get(key)):
            self.release(request.target)
        group = self._groups.get(key)
        recorded = None
        if request.pod and (group is None or request.keep_recorded):
            recorded = self._records.get(*key)
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
                "volumes": sorted(member.volume for member in group.members.values()),
                "limits": group.limits or "none",
                "notes": "; ".join(group.limits.notes) if group.limits else "",
                "in_force": not group.problem,
                "reason": group.problem,
            }
            log.info("I/O limits changed", extra={"fields": fields})

    def _record_and_enforce(self, group: ThrottleGroup) -> None:
        """Record the group and set its limit."""
        if self._enforcer is None or not group.pod:
            group.problem = self._unsupported_reason or NO_POD
            return
        # Before the kernel has it: after a kill, the next process must know every limit that is left in the
        # kernel.
        if group.limits:
            self._save_group(group)
        self._enforcer.apply(group)
        # Again with the counters that `apply` has read; and a group without limits loses its record only now.
        if group.is_metered or not group.limits:
            self._save_group(group)

    def _save_group(self, group: ThrottleGroup) -> None:
        """Record the group; a failing store must not keep a limit from being enforced."""
        if self._enforcer is None or not group.pod:
            return
        group.saved_at = self._now()
        try:
            self._records.put(group.to_record(self._enforcer.hierarchy.root, self._boot))
        except OSError as error:
            if not self._has_unsaved:
                # Until then a restart of the plugin gives full burst credits.
                log.error("I/O limits not recorded", extra={"fields": {"reason": error.strerror}})
            self._has_unsaved = True
        else:
            self._has_unsaved = False

    def _check_required(self, group: ThrottleGroup, limits: Limits | None) -> None:
        problem = _describe_problem(group)
        if self._required and limits and problem and not group.waits_for_cgroup:
            advice = "remove its performance keys, or --require-throttle from the node plugin"
            raise UnsupportedByNode(f"the volume's limits cannot be enforced: {problem}; {advice}")

    def release(self, *targets: str) -> None:
        """Remove the limits of the volumes at `targets`; a target without limits is no error."""
        with self._lock:
            for target in targets:
                group = self._group_by_target.pop(target, None)
                if group is None:
                    continue
                member = group.members.pop(target)
                # First: the share of the credit that stays depends on all reads until now.
                self._settle_burst(member, group)
                self._update_group(group, left=True)
                if not group.members:
                    del self._groups[(group.pod, group.device) if group.pod else ("", target)]

    def _settle_burst(self, member: GroupMember, group: ThrottleGroup) -> None:
        """Charge all reads until now to the group's credit, and log its total for a member that leaves."""
        if self._enforcer and group.is_metered:
            self._enforcer.charge(group)
        if group.burst.metered_ios >= 1:
            fields = {
                "volume": member.volume,
                "pod": group.pod,
                "device": group.device,
                "group_ios": round(group.burst.metered_ios),
            }
            log.info("burst I/O metered", extra={"fields": fields})

    def change_limits(self, volume: str, limits: Limits | None) -> None:
        """Change the limits of a volume in all pods that it is published to."""
        with self._lock:
            for group in list(self._groups.values()):
                members = [member for member in group.members.values() if member.volume == volume]
                for member in members:
                    member.limits = limits
                if members:
                    self._update_group(group)

    def get_limit_status(self, target: str) -> LimitStatus | None:
        """Return the limit in force for the volume at `target`, None for one without limits."""
        with self._lock:
            group = self._group_by_target.get(target)
            return _build_limit_status(group, group.members[target], self._enforcer) if group else None

    def list_limit_statuses(self) -> list[LimitStatus]:
        """Return the limits in force for every volume with limits, at every target."""
        with self._lock:
            return [status for target in self._group_by_target if (status := self.get_limit_status(target))]

    def _clear_stale_limits(self) -> None:
        for record in list(self._records.load_all_and_delete_unreadable()):
            if (record.pod, record.device) not in self._groups:
                self._clear_limit(record)

    def _clear_limit(self, record: GroupRecord) -> None:
        """Remove a limit that an earlier process of the plugin left."""
        # After a reboot the kernel has no limits left.
        if self._enforcer and record.boot == self._boot:
            self._enforcer.apply(ThrottleGroup(record.pod, record.device))
        self._records.put(GroupRecord(record.pod, record.device))

    def close(self) -> None:
        """Stop enforcing; limits stay in force in the kernel."""
        if self._enforcer:
            self._enforcer.close()


def _build_limit_status(
    group: ThrottleGroup, member: GroupMember, enforcer: LimitEnforcer | None
) -> LimitStatus | None:
    if member.limits is None:
        return None
    per_container = enforcer is not None and enforcer.hierarchy.is_flat
    problem = _describe_problem(group)
    return LimitStatus(
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
        return (
            "the pod has another volume without limits on the same device; "
            "that volume gets a device of its own when it is staged again"
        )
    return group.problem
