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
from csi.parameters.dialects.bandwidth import parse_bandwidth_limit
from csi.parameters.dialects.keys import Key, KeySetter
from csi.parameters.dialects.spelling import FOREIGN_PREFIXES as FOREIGN_PREFIXES
from csi.parameters.dialects.spelling import Spelling
from csi.parameters.dialects.table import (
    TYPE,
    parse_source,
    secret_key_names,
    source_key_names,
    source_key_table,
)
from csi.parameters.performance_keys import Performance
from csi.performance.capacity import GIB, round_up_to_gib
from csi.values import boolean_value, integer_value, quantity_value, redact

PVC_ANNOTATIONS_KEY = "pvcAnnotations"
VOLUME_KEYS = (
    TYPE,
    Key(
        "preserveOwnership",
        "`true` keeps uid, gid and mode; else files are root's, readable by all, execute bits kept",
        "`false`",
    ),
    Key(
        "writerAccessModes",
        "`refuse`, or `downgrade`: accept ReadWriteOnce and the like, and mount read-only all the same",
        "`refuse`; inline volumes are always downgraded",
    ),
    Key(
        "bandwidthLimit",
        "the most bytes per second that a fill fetches, as `500Mi`; in an item of `sources`, from that source",
        "no limit",
    ),
    Key(
        "egressProfile",
        "the operator's network that fetches go through (`--egress-profile`)",
        "the node's own",
        KeySetter.ADMINISTRATOR,
    ),
    Key(
        "size",
        "the volume's least size, as `20Gi` (a bare number is GiB); a claim asks for storage instead",
        "the content's",
        KeySetter.VOLUME,
    ),
    Key(
        PVC_ANNOTATIONS_KEY,
        "the keys, by commas, that a PVC may give in annotations, as `datacache.csi.io/repoId`; with `--registry kubernetes` alone",
        "none",
        KeySetter.CLASS,
    ),
    Key("namedBy", "`pod`: the source is the word of the author of a pod or PVC", "", KeySetter.CONTROLLER),
    Key("manifestDigest", "what the source held when the volume was created", "", KeySetter.CONTROLLER),
    Key("capacityBytes", "the volume's capacity", "", KeySetter.CONTROLLER),
)
KEYS: dict[str, Key] = source_key_table() | {
    key.name: key for key in (*VOLUME_KEYS, *performance_keys.KEY_TABLE)
}
"""Every key there is, by its canonical name; of one that several sources have (`path`), one source's."""
SPELLING = Spelling(KEYS.values(), secret_key_names())
# EROFS counts 4 KiB blocks in 32 bits.
MAX_VOLUME_BYTES = 2**32 * 4096

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


def parse_volume_parameters(
    parameters: Mapping[str, str], mount_flags: Iterable[str] = ()
) -> VolumeParameters:
    """Parse flat `parameters`; `mount_flags` (a StorageClass's or PV's mountOptions) are NFS options for a NAS source.

    Raises InvalidParameter that names the key, what is wrong with its value and what would be right.
    """
    parsed = parse_accepted_parameters(parameters, mount_flags)
    parsed.performance.check()
    return parsed


def parse_accepted_parameters(
    parameters: Mapping[str, str], mount_flags: Iterable[str] = ()
) -> VolumeParameters:
    """As `parse_volume_parameters`, for what was accepted once: performance keys need not agree, as 0.1.0 did not ask it of them."""
    values = canonical_keys(parameters)
    if PVC_ANNOTATIONS_KEY in values:
        raise InvalidParameter(
            f"{PVC_ANNOTATIONS_KEY} is for a StorageClass alone, whose volumes a controller with --registry kubernetes creates; remove it here"
        )
    flags = [flag for item in mount_flags for flag in item.split(",") if flag]
    source = parse_source(values, flags)
    modes = values.get("writerAccessModes", "refuse")
    if modes not in ("refuse", "downgrade"):
        raise InvalidParameter(
            f'writerAccessModes is {redact(modes)}; it is "refuse" (the default) or "downgrade"'
        )
    capacity = values.get("capacityBytes")
    return VolumeParameters(
        CacheSpec(
            source,
            boolean_value("preserveOwnership", values.get("preserveOwnership", "false")),
            *_parse_transport(values),
        ),
        Performance().with_changes(values),
        modes == "downgrade",
        _parse_digest(values.get("manifestDigest")),
        None if capacity is None else integer_value("capacityBytes", capacity, 0, 2**62),
        _parse_size(values.get("size", "")),
    )


def parse_mutable(parameters: Mapping[str, str], base: Performance) -> Performance:
    """`base` changed by mutable parameters (VolumeAttributesClass); raises InvalidParameter as `check_mutable`, and where the keys disagree then."""
    changed = base.with_changes(_check_mutable_keys(parameters))
    changed.check()
    return changed


def check_mutable(parameters: Mapping[str, str]) -> None:
    """Raise InvalidParameter for mutable parameters that fit no volume: only performance keys are known there, each with values of its own."""
    Performance().with_changes(_check_mutable_keys(parameters))


def _check_mutable_keys(parameters: Mapping[str, str]) -> dict[str, str]:
    values = canonical_keys(parameters)
    for key in values:
        if key not in performance_keys.KEYS:
            raise InvalidParameter(
                f"{key} cannot be changed on a volume; only {', '.join(performance_keys.KEYS)} can"
            )
    return values


def parse_performance(parameters: Mapping[str, str]) -> Performance:
    """What performance keys ask for, where nothing else may be given; raises InvalidParameter naming the key."""
    values = canonical_keys(parameters)
    for key in values:
        if key not in performance_keys.KEYS:
            raise InvalidParameter(
                f"{key} is nothing that a volume of a DataCache can have; only {', '.join(performance_keys.KEYS)} are"
            )
    performance = Performance().with_changes(values)
    performance.check()
    return performance


def names_a_source(parameters: Mapping[str, str]) -> bool:
    """Whether any key in `parameters` says where data lives (a clone needs none)."""
    return any(SPELLING.find_name(key) in source_key_names() | {TYPE.name} for key in parameters)


def check_untrusted_keys(parameters: Mapping[str, str], author: str = "inline volumes") -> None:
    """Raise PermissionDenied for a key that is an administrator's to set, InvalidParameter for one that only a controller writes.

    `author` words they are, as the message names them.
    """
    for name in canonical_keys(parameters):
        if KEYS[name].setter is KeySetter.CONTROLLER:
            raise InvalidParameter(f"{name} is not for {author}; remove it")
        if KEYS[name].setter is KeySetter.ADMINISTRATOR:
            raise PermissionDenied(
                f"{name} is not for {author}: only an administrator may set it; remove it, or use a StorageClass"
            )


def canonical_keys(parameters: Mapping[str, str]) -> dict[str, str]:
    """`parameters` with every key in its canonical spelling, values trimmed, Kubernetes' own keys left out; raises InvalidParameter."""
    return SPELLING.canonicalize(parameters)


def _parse_digest(text: str | None) -> str | None:
    if text is not None and not _DIGEST.fullmatch(text):
        raise InvalidParameter(
            f"manifestDigest is {redact(text)}; it is 64 hex digits that the controller wrote, leave it as it was or remove it"
        )
    return text


def _parse_size(text: str) -> int | None:
    """Bytes in whole GiB; a bare number is GiB, as in ECI."""
    return round_up_to_gib(quantity_value("size", text, 1, MAX_VOLUME_BYTES, "Gi")) if text else None


def _parse_transport(values: Mapping[str, str]) -> tuple[str, int | None, bool]:
    named_by = values.get("namedBy", "")
    if named_by not in ("", "pod"):
        raise InvalidParameter(f"namedBy is {redact(named_by)}; the driver writes it, remove it")
    profile = values.get("egressProfile", "")
    if profile and not _PROFILE.fullmatch(profile):
        raise InvalidParameter(
            f"egressProfile is {redact(profile)}; it is the name of one of the operator's networks"
        )
    return profile, parse_bandwidth_limit(values.get("bandwidthLimit", "")), named_by == "pod"
