"""Flat parameters (StorageClass, inline volume, static PV, volume context) -> what they ask for.

Keys are case-insensitive; each source's own ecosystem spells them (`csi.parameters.dialects.table`). Unknown keys are refused with the
nearest known one; keys that carry a credential are refused and pointed to Secrets, and their values never appear in a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from csi.errors import InvalidParameter, PermissionDenied
from csi.parameters import performance_keys
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.bandwidth import bandwidth_limit
from csi.parameters.dialects.keys import Key, Setter
from csi.parameters.dialects.spelling import FOREIGN_PREFIXES as FOREIGN_PREFIXES
from csi.parameters.dialects.spelling import Spelling
from csi.parameters.dialects.table import TYPE, secret_names, source_key_table, source_keys, source_of
from csi.parameters.performance_keys import Performance
from csi.performance.capacity import GIB, whole_gib
from csi.values import boolean, integer, quantity, shown

ANNOTATED = "pvcAnnotations"
VOLUME_KEYS = (
    TYPE,
    Key("preserveOwnership", "`true` keeps uid, gid and mode; else files are root's, readable by all, execute bits kept", "`false`"),
    Key(
        "writerAccessModes",
        "`refuse`, or `downgrade`: accept ReadWriteOnce and the like, and mount read-only all the same",
        "`refuse`; inline volumes are always downgraded",
    ),
    Key("bandwidthLimit", "the most bytes per second that a fill fetches, as `500Mi`; in an item of `sources`, from that source", "no limit"),
    Key("egressProfile", "the operator's network that fetches go through (`--egress-profile`)", "the node's own", Setter.ADMINISTRATOR),
    Key("size", "the volume's least size, as `20Gi` (a bare number is GiB); a claim asks for storage instead", "the content's", Setter.VOLUME),
    Key(
        ANNOTATED,
        "the keys, by commas, that a PVC may give in annotations, as `datacache.csi.io/repoId`; with `--registry kubernetes` alone",
        "none",
        Setter.CLASS,
    ),
    Key("namedBy", "`pod`: the source is the word of the author of a pod or PVC", "", Setter.CONTROLLER),
    Key("manifestDigest", "what the source held when the volume was created", "", Setter.CONTROLLER),
    Key("capacityBytes", "the volume's capacity", "", Setter.CONTROLLER),
)
KEYS: dict[str, Key] = source_key_table() | {key.name: key for key in (*VOLUME_KEYS, *performance_keys.KEY_TABLE)}
"""Every key there is, by its canonical name; of one that several sources have (`path`), one source's."""
SPELLING = Spelling(KEYS.values(), secret_names())
# EROFS counts 4 KiB blocks in 32 bits.
LARGEST_VOLUME = 2**32 * 4096

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROFILE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class VolumeParameters:
    """What one set of flat parameters asks for.

    `downgrade_writers`: writer access modes are accepted and mounted read-only all the same. `manifest_digest` (64
    hex digits) and `capacity_bytes` are set in the contexts that a controller wrote, None elsewhere. `size_bytes`
    (whole GiB) is the least capacity of a volume without a claim, None where it was not said.
    """

    spec: CacheSpec
    performance: Performance
    downgrade_writers: bool = False
    manifest_digest: str | None = None
    capacity_bytes: int | None = None
    size_bytes: int | None = None

    def to_context(self) -> dict[str, str]:
        """The volume context: flat parameters that parse to an equal object."""
        extra: dict[str, str] = self.spec.to_context() | self.performance.to_context()
        if self.downgrade_writers:
            extra["writerAccessModes"] = "downgrade"
        if self.manifest_digest is not None:
            extra["manifestDigest"] = self.manifest_digest
        if self.capacity_bytes is not None:
            extra["capacityBytes"] = str(self.capacity_bytes)
        if self.size_bytes is not None:
            extra["size"] = f"{self.size_bytes // GIB}Gi"
        return extra


def parse(parameters: Mapping[str, str], mount_flags: Iterable[str] = ()) -> VolumeParameters:
    """Parse flat `parameters`; `mount_flags` (a StorageClass's or PV's mountOptions) are NFS options for a NAS source.

    Raises InvalidParameter that names the key, what is wrong with its value and what would be right.
    """
    asked = parse_kept(parameters, mount_flags)
    asked.performance.check()
    return asked


def parse_kept(parameters: Mapping[str, str], mount_flags: Iterable[str] = ()) -> VolumeParameters:
    """As `parse`, for what was accepted once: performance keys need not agree, as 0.1.0 did not ask it of them."""
    values = canonical_keys(parameters)
    if ANNOTATED in values:
        raise InvalidParameter(
            f"{ANNOTATED} is for a StorageClass alone, whose volumes a controller with --registry kubernetes creates; remove it here"
        )
    flags = [flag for item in mount_flags for flag in item.split(",") if flag]
    source = source_of(values, flags)
    modes = values.get("writerAccessModes", "refuse")
    if modes not in ("refuse", "downgrade"):
        raise InvalidParameter(f'writerAccessModes is {shown(modes)}; it is "refuse" (the default) or "downgrade"')
    capacity = values.get("capacityBytes")
    return VolumeParameters(
        CacheSpec(source, boolean("preserveOwnership", values.get("preserveOwnership", "false")), *_way(values)),
        Performance().changed(values),
        modes == "downgrade",
        _digest(values.get("manifestDigest")),
        None if capacity is None else integer("capacityBytes", capacity, 0, 2**62),
        _size(values.get("size", "")),
    )


def parse_mutable(parameters: Mapping[str, str], base: Performance) -> Performance:
    """`base` changed by mutable parameters (VolumeAttributesClass); raises InvalidParameter as `check_mutable`, and where the keys disagree then."""
    changed = base.changed(_mutable(parameters))
    changed.check()
    return changed


def check_mutable(parameters: Mapping[str, str]) -> None:
    """Raise InvalidParameter for mutable parameters that fit no volume: only performance keys are known there, each with values of its own."""
    Performance().changed(_mutable(parameters))


def _mutable(parameters: Mapping[str, str]) -> dict[str, str]:
    values = canonical_keys(parameters)
    for key in values:
        if key not in performance_keys.KEYS:
            raise InvalidParameter(f"{key} cannot be changed on a volume; only {', '.join(performance_keys.KEYS)} can")
    return values


def parse_performance(parameters: Mapping[str, str]) -> Performance:
    """What performance keys ask for, where nothing else may be given; raises InvalidParameter naming the key."""
    values = canonical_keys(parameters)
    for key in values:
        if key not in performance_keys.KEYS:
            raise InvalidParameter(f"{key} is nothing that a volume of a DataCache can have; only {', '.join(performance_keys.KEYS)} are")
    asked = Performance().changed(values)
    asked.check()
    return asked


def names_a_source(parameters: Mapping[str, str]) -> bool:
    """Whether any key in `parameters` says where data lives (a clone needs none)."""
    return any(SPELLING.name_of(key) in source_keys() | {TYPE.name} for key in parameters)


def check_users_keys(parameters: Mapping[str, str], whose: str = "inline volumes") -> None:
    """Raise PermissionDenied for a key that is an administrator's to set, InvalidParameter for one that only a controller writes.

    `whose` words they are, as the message names them.
    """
    for name in canonical_keys(parameters):
        if KEYS[name].setter is Setter.CONTROLLER:
            raise InvalidParameter(f"{name} is not for {whose}; remove it")
        if KEYS[name].setter is Setter.ADMINISTRATOR:
            raise PermissionDenied(f"{name} is not for {whose}: only an administrator may set it; remove it, or use a StorageClass")


def canonical_keys(parameters: Mapping[str, str]) -> dict[str, str]:
    """`parameters` with every key in its canonical spelling, values trimmed, Kubernetes' own keys left out; raises InvalidParameter."""
    return SPELLING.canonical(parameters)


def _digest(text: str | None) -> str | None:
    if text is not None and not _DIGEST.fullmatch(text):
        raise InvalidParameter(f"manifestDigest is {shown(text)}; it is 64 hex digits that the controller wrote, leave it as it was or remove it")
    return text


def _size(text: str) -> int | None:
    """Bytes in whole GiB; a bare number is GiB, as in ECI."""
    return whole_gib(quantity("size", text, 1, LARGEST_VOLUME, "Gi")) if text else None


def _way(values: Mapping[str, str]) -> tuple[str, int | None, bool]:
    named_by = values.get("namedBy", "")
    if named_by not in ("", "pod"):
        raise InvalidParameter(f"namedBy is {shown(named_by)}; the driver writes it, remove it")
    profile = values.get("egressProfile", "")
    if profile and not _PROFILE.fullmatch(profile):
        raise InvalidParameter(f"egressProfile is {shown(profile)}; it is the name of one of the operator's networks")
    return profile, bandwidth_limit(values.get("bandwidthLimit", "")), named_by == "pod"
