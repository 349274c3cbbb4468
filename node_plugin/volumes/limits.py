"""I/O limits of a volume on this node, from its context or the registry, and their description."""

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
from node_plugin.throttle.throttle import LimitStatus
from node_plugin.volumes.records import NO_LIMITS, NodeVolume

log = logging.getLogger("datacache.limits")

# How long (in seconds) read-ahead may take at the sustained limit, since a page fault waits for all of it.
_MAX_READ_AHEAD_SECONDS = 1 / 64
_MIN_READ_AHEAD = 128 * 2**10


class PerformanceLookup:
    """Lookup of performance in `registry`, if any: it may change, while a volume's context cannot."""

    def __init__(self, registry: VolumeRegistry | None = None) -> None:
        self._registry = registry

    def with_current_performance(self, volume: NodeVolume) -> NodeVolume:
        """Return the volume with its performance from the registry; unchanged without a readable record."""
        # Inline volumes have no record in the registry.
        record = None if volume.is_inline else self._read_record(volume.id)
        if record is None:
            return volume
        return replace(
            volume, performance=record.performance.to_context(), capacity_bytes=record.capacity_bytes
        )

    def _read_record(self, volume_id: str) -> VolumeRecord | None:
        try:
            return self._registry.get(volume_id) if self._registry else None
        # A volume must be mountable while the registry is unreachable.
        except (DataCacheError, OSError) as error:
            fields = {"volume": volume_id, "reason": error}
            log.warning("registry not readable, keeping known limits", extra={"fields": fields})
            return None


def compute_volume_limits(volume: NodeVolume) -> Limits | None:
    """Return the volume's limits, None for none.

    Limits over those of its size are lowered for an inline volume; for others they raise InvalidParameter.
    """
    if volume.performance is None:
        performance = parse_accepted_parameters(volume.context).performance
    else:
        performance = Performance().with_changes(volume.performance)
    return compute_limits(performance, volume.capacity_bytes, clamp=volume.is_inline)


def limit_class_name(volume: NodeVolume, limits: Limits | None) -> str:
    """Return the name of the limit class of a volume with these limits, which has a loop device of its own.

    All volumes without limits share a class, and so do inline volumes of equal limits. A persistent volume
    with limits has its own, since they can change.
    """
    if limits is None:
        return NO_LIMITS
    if volume.is_inline:
        kind = "limits"
        # Without the notes, which describe how the limits were derived.
        identity = json.dumps(replace(limits, notes=()).to_json())
    else:
        kind = "volume"
        identity = volume.id
    return f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def read_ahead_bytes(limits: Limits | None) -> int | None:
    """Return the read-ahead in bytes under these limits, None for the loop devices' default."""
    if limits is None or limits.sustained.bytes_per_second is None:
        return None
    # Rounded down to a multiple of the minimum, which is a power of two.
    size = int(limits.sustained.bytes_per_second * _MAX_READ_AHEAD_SECONDS) & -_MIN_READ_AHEAD
    return max(_MIN_READ_AHEAD, size)


def describe_limit_status(status: LimitStatus | None) -> str:
    """Return the text of a volume's condition about its limits in one pod."""
    if status is None:
        return "no I/O limits"
    notes = "".join(f"; {note}" for note in status.limits.notes)
    if status.problem:
        return f"not throttled: {status.problem}; its limits are {status.limits}{notes}"
    return f"limits: {status.limits}{_describe_scope(status)}{_describe_burst(status)}{notes}"


def _describe_scope(status: LimitStatus) -> str:
    text = ", for each container of the pod by itself (cgroup v1)" if status.per_container else ""
    if status.group_limits and status.group_limits.sustained != status.limits.sustained:
        text += f"; with the pod's other volumes of this image {status.group_limits.sustained} together"
    return text


def _describe_burst(status: LimitStatus) -> str:
    if status.group_limits is None or status.group_limits.burst is None:
        return ""
    text = f"; in force now: {status.rate}"
    if status.burst.credit is not None:
        credit = max(0, status.burst.credit)
        text += f"; burst credit left: {credit:.0f} of {status.group_limits.credit} I/Os"
    return f"{text}; metered burst I/O: {status.burst.metered_ios:.0f}"
