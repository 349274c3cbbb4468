"""Parsing of flat parameters (StorageClass, inline volume, static PV, volume context) into VolumeParameters.

Keys are case-insensitive; each source uses the spelling of its own ecosystem
(`csi.parameters.dialects.table`). Unknown keys are refused with the nearest known one. Keys that carry a
credential are refused with a pointer to Secrets, and their values never appear in a message.
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
        "`true` keeps uid, gid and mode; otherwise files belong to root, "
        "are readable by all and keep execute bits",
        "`false`",
    ),
    Key(
        "writerAccessModes",
        "`refuse`, or `downgrade`: accept ReadWriteOnce and the like, but mount read-only",
        "`refuse`; inline volumes are always downgraded",
    ),
    Key(
        "bandwidthLimit",
        "the maximum bytes per second of a fill, such as `500Mi`; in an item of `sources`, for that source",
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
        "the minimum size of the volume, such as `20Gi` (a bare number is GiB); "
        "a PVC requests storage instead",
        "the content's",
        KeySetter.VOLUME,
    ),
    Key(
        PVC_ANNOTATIONS_KEY,
        "comma-separated keys that a PVC may set by annotation, such as `datacache.csi.io/repoId`; "
        "only with `--registry kubernetes`",
        "none",
        KeySetter.CLASS,
    ),
    Key("namedBy", "`pod`: the author of a pod or PVC named the source", "", KeySetter.CONTROLLER),
    Key("manifestDigest", "the digest of the content when the volume was created", "", KeySetter.CONTROLLER),
    Key("capacityBytes", "the volume's capacity", "", KeySetter.CONTROLLER),
)
KEYS: dict[str, Key] = source_key_table() | {
    key.name: key for key in (*VOLUME_KEYS, *performance_keys.KEY_TABLE)
}
"""All keys by canonical name; for a key that several sources have (`path`), that of one source."""
SPELLING = Spelling(KEYS.values(), secret_key_names())
# EROFS has 32-bit block numbers and 4 KiB blocks.
MAX_VOLUME_BYTES = 2**32 * 4096

_DIGEST = re.compile(r"[0-9a-f]{64}")
# The same form as the keys of --egress-profile.
_PROFILE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class VolumeParameters:
    """The meaning of one set of flat parameters.

    `downgrade_writers` accepts writer access modes and mounts them read-only. `manifest_digest` (64 hex
    digits) and `capacity_bytes` are set in contexts written by a controller, else None. `size_bytes` (whole
    GiB) is the least capacity of a volume without a PVC, None if not given.
    """

    spec: CacheSpec
    performance: Performance
    downgrade_writers: bool = False
    manifest_digest: str | None = None
    capacity_bytes: int | None = None
    size_bytes: int | None = None

    def to_context(self) -> dict[str, str]:
        """Return the volume context: flat parameters that parse to an equal object."""
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
    """Parse flat `parameters`.

    `mount_flags` (mountOptions of a StorageClass or PV) are NFS options of a NAS source.

    Raises InvalidParameter saying which key is wrong, why, and what would be right.
    """
    parsed = parse_accepted_parameters(parameters, mount_flags)
    parsed.performance.check()
    return parsed


def parse_accepted_parameters(
    parameters: Mapping[str, str], mount_flags: Iterable[str] = ()
) -> VolumeParameters:
    """Parse like `parse_volume_parameters`, but accept performance keys that contradict each other.

    For volumes that exist already: version 0.1.0 did not check that.
    """
    values = canonicalize_parameters(parameters)
    if PVC_ANNOTATIONS_KEY in values:
        raise InvalidParameter(
            f"{PVC_ANNOTATIONS_KEY} is only for a StorageClass whose volumes are created by a controller "
            "with --registry kubernetes; remove it here"
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
    """Return `base` changed by mutable parameters (VolumeAttributesClass).

    Raises InvalidParameter as `check_mutable` does, or if the resulting keys contradict each other.
    """
    changed = base.with_changes(_check_mutable_keys(parameters))
    changed.check()
    return changed


def check_mutable(parameters: Mapping[str, str]) -> None:
    """Raise InvalidParameter for mutable parameters that fit no volume: unknown keys or bad values."""
    Performance().with_changes(_check_mutable_keys(parameters))


def _check_mutable_keys(parameters: Mapping[str, str]) -> dict[str, str]:
    values = canonicalize_parameters(parameters)
    for key in values:
        if key not in performance_keys.KEYS:
            raise InvalidParameter(
                f"{key} cannot be changed on a volume; only {', '.join(performance_keys.KEYS)} can"
            )
    return values


def parse_performance(parameters: Mapping[str, str]) -> Performance:
    """Parse performance keys where no other keys are allowed; raises InvalidParameter naming the key."""
    values = canonicalize_parameters(parameters)
    for key in values:
        if key not in performance_keys.KEYS:
            raise InvalidParameter(
                f"{key} cannot be set on a volume of a DataCache; only {', '.join(performance_keys.KEYS)} can"
            )
    performance = Performance().with_changes(values)
    performance.check()
    return performance


def names_a_source(parameters: Mapping[str, str]) -> bool:
    """Return whether any key in `parameters` says where data is (a clone needs none)."""
    return any(SPELLING.find_name(key) in source_key_names() | {TYPE.name} for key in parameters)


def check_untrusted_keys(parameters: Mapping[str, str], author: str = "inline volumes") -> None:
    """Raise PermissionDenied for keys that only an administrator may set.

    Raises InvalidParameter for keys that only a controller writes. `author` says in messages who gave the
    keys.
    """
    for name in canonicalize_parameters(parameters):
        if KEYS[name].setter is KeySetter.CONTROLLER:
            raise InvalidParameter(f"{name} is not for {author}; remove it")
        if KEYS[name].setter is KeySetter.ADMINISTRATOR:
            raise PermissionDenied(
                f"{name} is not for {author}: only an administrator may set it; "
                "remove it, or use a StorageClass"
            )


def canonicalize_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return `parameters` with canonical keys and trimmed values, without Kubernetes' own keys.

    Raises InvalidParameter for an unknown key, a credential, or a key given twice.
    """
    return SPELLING.canonicalize(parameters)


def _parse_digest(text: str | None) -> str | None:
    if text is not None and not _DIGEST.fullmatch(text):
        raise InvalidParameter(
            f"manifestDigest is {redact(text)}; it is 64 hex digits written by the controller; "
            "restore the original value or remove it"
        )
    return text


def _parse_size(text: str) -> int | None:
    """Parse into bytes, rounded up to whole GiB; a bare number is GiB, as in ECI."""
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
