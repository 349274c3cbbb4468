"""The limits of a volume on this node: what it was given, as the registry has it now, and what people are told of it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace

from csi.errors import DataCacheError
from csi.parameters.performance_keys import Performance, limits
from csi.parameters.volume_parameters import parse_kept
from csi.performance.limits import Limits
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry
from node_plugin.throttle.throttle import Held
from node_plugin.volumes.records import NO_LIMITS, NodeVolume

log = logging.getLogger("datacache.limits")

# How long reading ahead may take at the sustained limit: a page fault waits for all that was asked for with it.
_READ_AHEAD_SECONDS = 1 / 64
_LEAST_READ_AHEAD = 128 * 2**10


class VolumeLimits:
    """Asks `registry`, where there is one, since a volume's performance may change while its context cannot."""

    def __init__(self, registry: VolumeRegistry | None = None) -> None:
        self._registry = registry

    def known(self, volume: NodeVolume) -> NodeVolume:
        """The volume with what the registry says of its performance now; as it was where that says nothing, or cannot be read."""
        record = None if volume.inline else self._record(volume.id)
        return replace(volume, performance=record.performance.to_context(), capacity_bytes=record.capacity_bytes) if record else volume

    def _record(self, volume_id: str) -> VolumeRecord | None:
        try:
            return self._registry.get(volume_id) if self._registry else None
        except (DataCacheError, OSError) as error:
            log.warning("registry not readable, limits are those known before", extra={"fields": {"volume": volume_id, "reason": error}})
            return None


def limits_of(volume: NodeVolume) -> Limits | None:
    """The volume's limits, None for none. What its size does not have is lowered for an inline volume, InvalidParameter for others."""
    kept = volume.performance
    performance = parse_kept(volume.context).performance if kept is None else Performance().changed(kept)
    return limits(performance, volume.capacity_bytes, clamp=volume.inline)


def limit_class(volume: NodeVolume) -> str:
    """The name of its device among those of its image: one for all without limits, one for inline volumes of equal limits.

    A persistent volume's limits can change, so it has one of its own. Raises as `limits_of`.
    """
    given = limits_of(volume)
    if given is None:
        return NO_LIMITS
    what, of = ("limits", json.dumps(replace(given, notes=()).to_json())) if volume.inline else ("volume", volume.id)
    return f"{what}-{hashlib.sha256(of.encode()).hexdigest()[:16]}"


def read_ahead(given: Limits | None) -> int | None:
    """How far to read ahead, in bytes, under these limits; None for as far as the disk's own setting."""
    if given is None or given.sustained.bytes_per_second is None:
        return None
    return max(_LEAST_READ_AHEAD, int(given.sustained.bytes_per_second * _READ_AHEAD_SECONDS) & -_LEAST_READ_AHEAD)


def in_words(held: Held | None) -> str:
    """What a volume's condition says of its limits in one pod."""
    if held is None:
        return "no I/O limits"
    notes = "".join(f"; {note}" for note in held.limits.notes)
    if held.problem:
        return f"not throttled: {held.problem}; its limits are {held.limits}{notes}"
    return f"limits: {held.limits}{_scope(held)}{_burst(held)}{notes}"


def _scope(held: Held) -> str:
    words = ", for each container of the pod by itself (cgroup v1)" if held.each_container else ""
    if held.together and held.together.sustained != held.limits.sustained:
        words += f"; with the pod's other volumes of this image {held.together.sustained} together"
    return words


def _burst(held: Held) -> str:
    if held.together is None or held.together.burst is None:
        return ""
    words = f"; in force now: {held.rate}"
    if held.burst.credit is not None:
        words += f"; burst credit left: {max(0, held.burst.credit):.0f} of {held.together.credit} I/Os"
    return f"{words}; metered burst I/O: {held.burst.metered:.0f}"
