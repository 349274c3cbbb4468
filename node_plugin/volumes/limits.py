"""The limits of a volume on this node: what it was given, as the registry has it now, and what people are told of it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace

from csi.errors import DataCacheError
from csi.parameters.performance_keys import Performance, compute_limits
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.performance.limits import Limits
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry
from node_plugin.throttle.throttle import AppliedLimit
from node_plugin.volumes.records import NO_LIMITS, NodeVolume

log = logging.getLogger("datacache.limits")

# How long reading ahead may take at the sustained limit: a page fault waits for all that was asked for with it.
_MAX_READ_AHEAD_SECONDS = 1 / 64
_MIN_READ_AHEAD = 128 * 2**10


class PerformanceLookup:
    """Asks `registry`, where there is one, since a volume's performance may change while its context cannot."""

    def __init__(self, registry: VolumeRegistry | None = None) -> None:
        self._registry = registry

    def with_current_performance(self, volume: NodeVolume) -> NodeVolume:
        """The volume with what the registry says of its performance now; as it was where that says nothing, or cannot be read."""
        record = None if volume.is_inline else self._read_record(volume.id)
        return (
            replace(volume, performance=record.performance.to_context(), capacity_bytes=record.capacity_bytes)
            if record
            else volume
        )

    def _read_record(self, volume_id: str) -> VolumeRecord | None:
        try:
            return self._registry.get(volume_id) if self._registry else None
        except (DataCacheError, OSError) as error:
            log.warning(
                "registry not readable, limits are those known before",
                extra={"fields": {"volume": volume_id, "reason": error}},
            )
            return None


def compute_volume_limits(volume: NodeVolume) -> Limits | None:
    """The volume's limits, None for none. What its size does not have is lowered for an inline volume, InvalidParameter for others."""
    registered = volume.performance
    performance = (
        parse_accepted_parameters(volume.context).performance
        if registered is None
        else Performance().with_changes(registered)
    )
    return compute_limits(performance, volume.capacity_bytes, clamp=volume.is_inline)


def limit_class_name(volume: NodeVolume) -> str:
    """The name of its device among those of its image: one for all without limits, one for inline volumes of equal limits.

    A persistent volume's limits can change, so it has one of its own. Raises as `compute_volume_limits`.
    """
    limits = compute_volume_limits(volume)
    if limits is None:
        return NO_LIMITS
    kind, identity = (
        ("limits", json.dumps(replace(limits, notes=()).to_json()))
        if volume.is_inline
        else ("volume", volume.id)
    )
    return f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def read_ahead_bytes(limits: Limits | None) -> int | None:
    """How far to read ahead, in bytes, under these limits; None for as far as the disk's own setting."""
    if limits is None or limits.sustained.bytes_per_second is None:
        return None
    return max(
        _MIN_READ_AHEAD, int(limits.sustained.bytes_per_second * _MAX_READ_AHEAD_SECONDS) & -_MIN_READ_AHEAD
    )


def describe_applied_limit(applied: AppliedLimit | None) -> str:
    """What a volume's condition says of its limits in one pod."""
    if applied is None:
        return "no I/O limits"
    notes = "".join(f"; {note}" for note in applied.limits.notes)
    if applied.problem:
        return f"not throttled: {applied.problem}; its limits are {applied.limits}{notes}"
    return f"limits: {applied.limits}{_describe_scope(applied)}{_describe_burst(applied)}{notes}"


def _describe_scope(applied: AppliedLimit) -> str:
    words = ", for each container of the pod by itself (cgroup v1)" if applied.per_container else ""
    if applied.group_limits and applied.group_limits.sustained != applied.limits.sustained:
        words += f"; with the pod's other volumes of this image {applied.group_limits.sustained} together"
    return words


def _describe_burst(applied: AppliedLimit) -> str:
    if applied.group_limits is None or applied.group_limits.burst is None:
        return ""
    words = f"; in force now: {applied.rate}"
    if applied.burst.credit is not None:
        words += (
            f"; burst credit left: {max(0, applied.burst.credit):.0f} of {applied.group_limits.credit} I/Os"
        )
    return f"{words}; metered burst I/O: {applied.burst.metered_ios:.0f}"
