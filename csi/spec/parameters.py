"""Flat parameters (StorageClass, inline volume, static PV, volume context) -> what they ask for.

Keys are case-insensitive; each source's own ecosystem spells them. Unknown keys are refused with the nearest known
one; keys that carry a credential are refused and pointed to Secrets, and their values never appear in a message.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from csi.errors import InvalidParameter
from csi.spec import nfs_options, performance
from csi.spec.cache import REPO_SOURCES, CacheSpec, HubSpec, NasSpec, split_list
from csi.spec.performance import GIB, Performance, boolean, integer, quantity, whole_gib
from csi.spec.shown import shown

_HUB_KEYS = ("repoSource", "repoId", "revision", "allowPatterns", "ignorePatterns")
_NAS_KEYS = ("server", "path", "vers", "options", "share", "subDir", "mountOptions", "uid", "gid")
_VOLUME_KEYS = ("type", "preserveOwnership", "writerAccessModes", "size", "manifestDigest", "capacityBytes", *performance.KEYS)
# Other spellings: short ones, and the annotations of ECI pods.
_ALIASES = {
    "pl": "performanceLevel",
    "bursting": "burstingEnabled",
    "k8s.aliyun.com/eci-data-cache-pl": "performanceLevel",
    "k8s.aliyun.com/eci-data-cache-provisionediops": "provisionedIops",
    "k8s.aliyun.com/eci-data-cache-burstingenabled": "burstingEnabled",
}
_KNOWN = {key.lower(): key for key in (*_HUB_KEYS, *_NAS_KEYS, *_VOLUME_KEYS)} | _ALIASES
_SECRET_KEYS = frozenset(("accesstoken", "token", "hftoken", "hf_token", "password", "secretkey", "akid", "aksecret", "otheropts", "securitytoken"))
# Kubernetes adds these to parameters and contexts by itself.
FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
_MAX_VALUE = 4096
# EROFS counts 4 KiB blocks in 32 bits.
LARGEST_VOLUME = 2**32 * 4096

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9]+)?\]?")
_REPO_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"(?!.*(\.\.|//|@\{))[^\x00-\x20~^:?*\[\\\x7f/][^\x00-\x20~^:?*\[\\\x7f]{0,254}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_GENERIC_MOUNT_FLAGS = frozenset(("ro", "noatime", "nodiratime", "relatime", "nosuid", "nodev"))


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
    flags = [flag for item in mount_flags for flag in item.split(",") if flag]
    source = _SOURCES[_source_kind(values)](values, flags)
    modes = values.get("writerAccessModes", "refuse")
    if modes not in ("refuse", "downgrade"):
        raise InvalidParameter(f'writerAccessModes is {shown(modes)}; it is "refuse" (the default) or "downgrade"')
    capacity = values.get("capacityBytes")
    return VolumeParameters(
        CacheSpec(source, boolean("preserveOwnership", values.get("preserveOwnership", "false"))),
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
        if key not in performance.KEYS:
            raise InvalidParameter(f"{key} cannot be changed on a volume; only {', '.join(performance.KEYS)} can")
    return values


def names_a_source(parameters: Mapping[str, str]) -> bool:
    """Whether any key in `parameters` says where data lives (a clone needs none)."""
    return any(_KNOWN.get(key.lower()) in (*_HUB_KEYS, *_NAS_KEYS, "type") for key in parameters)


def canonical_keys(parameters: Mapping[str, str]) -> dict[str, str]:
    """`parameters` with every key in its canonical spelling, values trimmed, Kubernetes' own keys left out."""
    values: dict[str, str] = {}
    for key, value in parameters.items():
        if key.startswith(FOREIGN_PREFIXES):
            continue
        name = _known(key)
        if name in values:
            raise InvalidParameter(f"{name} is given twice (as {shown(key)} too); keep one")
        values[name] = _checked_value(name, value)
    return values


def _known(key: str) -> str:
    lower = key.lower()
    if lower in _KNOWN:
        return _KNOWN[lower]
    if lower in _SECRET_KEYS:
        raise InvalidParameter(
            f"{key} is a credential and does not belong into parameters or volume attributes; put it into a Secret (key `token`) and name that Secret"
        )
    near = difflib.get_close_matches(lower, _KNOWN, 1, 0.6)
    hint = f"; did you mean {_KNOWN[near[0]]}?" if near else f"; known are {', '.join(dict.fromkeys(_KNOWN.values()))}"
    raise InvalidParameter(f"unknown parameter {shown(key, 80)}{hint}")


def _checked_value(name: str, value: str) -> str:
    if len(value) > _MAX_VALUE or "\0" in value:
        raise InvalidParameter(f"{name} is over {_MAX_VALUE} characters or holds a NUL; shorten it")
    return value.strip() if name not in ("allowPatterns", "ignorePatterns") else value


def _source_kind(values: Mapping[str, str]) -> str:
    hub = sorted(values.keys() & set(_HUB_KEYS))
    nas = sorted(values.keys() & set(_NAS_KEYS))
    if hub and nas:
        raise InvalidParameter(f"{hub[0]} and {nas[0]} name two sources (a hub repository and a NAS); keep one")
    given = values.get("type", "").upper()
    if given and given not in _TYPES:
        raise InvalidParameter(f"type is {shown(values['type'])}; it is one of URL (with repoSource and repoId), NAS")
    kind = _TYPES[given] if given else "hub" if hub else "nas" if nas else ""
    if not kind:
        raise InvalidParameter("no source is named; give repoSource and repoId (a hub repository), or server and path (a NAS)")
    if (kind == "hub" and nas) or (kind == "nas" and hub):
        raise InvalidParameter(f"type is {shown(values['type'])}, but {(nas or hub)[0]} belongs to another type; change one of them")
    return kind


_TYPES = {"URL": "hub", "HUGGINGFACE": "hub", "NAS": "nas"}


def _hub(values: Mapping[str, str], flags: list[str]) -> HubSpec:
    for flag in flags:
        if flag not in _GENERIC_MOUNT_FLAGS:
            raise InvalidParameter(f"mountOptions has {shown(flag.partition('=')[0])}, which means nothing for a hub repository; remove it")
    repo_id = values.get("repoId", "")
    if not repo_id:
        raise InvalidParameter("repoId is missing; give the repository as org/name")
    if not _REPO_ID.fullmatch(repo_id):
        raise InvalidParameter(f"repoId is {shown(repo_id, 100)}; it is org/name of letters, digits, '-', '_' and '.'")
    revision = values.get("revision", "") or "main"
    if not _REVISION.fullmatch(revision):
        raise InvalidParameter(f"revision is {shown(revision, 100)}; it is a branch, tag or commit")
    patterns = {key: split_list(values.get(key, "")) for key in ("allowPatterns", "ignorePatterns")}
    return HubSpec(_repo_source(values.get("repoSource", "")), repo_id, revision, patterns["allowPatterns"], patterns["ignorePatterns"])


def _repo_source(text: str) -> str:
    known = {source.lower(): source for source in REPO_SOURCES}
    if text and text.lower() not in known:
        raise InvalidParameter(f"repoSource is {shown(text)}; it is one of {', '.join(REPO_SOURCES)}")
    return known[text.lower()] if text else REPO_SOURCES[0]


def _nas(values: Mapping[str, str], flags: list[str]) -> NasSpec:
    server, path = _server_and_path(values)
    options = nfs_options.NfsOptions()
    for key, text in (("mountOptions", ",".join(flags)), ("mountOptions", values.get("mountOptions", "")), ("options", values.get("options", ""))):
        options = _overlay(options, nfs_options.parse(text, key))
    version = nfs_options.version(values["vers"]) if values.get("vers") else options.version or "3"
    return NasSpec(
        server=server,
        path=path,
        version=version,
        port=options.port or 0,
        mount_port=options.mount_port or 0,
        timeout=60.0 if options.timeout is None else options.timeout,
        retries=2 if options.retries is None else options.retries,
        uid=integer("uid", values.get("uid", "0"), 0, 2**32 - 2),
        gid=integer("gid", values.get("gid", "0"), 0, 2**32 - 2),
    )


def _overlay(base: nfs_options.NfsOptions, top: nfs_options.NfsOptions) -> nfs_options.NfsOptions:
    chosen = {key: value for key in base.__dataclass_fields__ if (value := getattr(top, key)) is not None}
    return nfs_options.NfsOptions(**{**base.__dict__, **chosen})


def _server_and_path(values: Mapping[str, str]) -> tuple[str, str]:
    given = values.get("server", "")
    server, colon, rest = given.partition(":/")
    path = values.get("path", "") or values.get("share", "") or (colon and "/" + rest)
    if not server:
        raise InvalidParameter("server is missing; give the NAS's host name or address")
    # With a scheme or a user in it, "host:/path" would split at the wrong place, and a password become part of the path.
    if not _HOST.fullmatch(server) or "://" in given or "@" in given:
        raise InvalidParameter(f"server is {shown(given, 100)}; it is a host name or address, without scheme, port or user")
    if values.get("path") and values.get("share"):
        raise InvalidParameter("path and share are both given; they are two spellings of one thing, keep one")
    if not path:
        raise InvalidParameter("path is missing; give the export (and folder) on the NAS, such as /share/models")
    return server.strip("[]"), _absolute(path, values.get("subDir", ""))


def _absolute(path: str, sub_dir: str) -> str:
    parts = [part for part in (path + "/" + sub_dir).split("/") if part]
    if not path.startswith("/") or ".." in parts or "." in parts:
        raise InvalidParameter(
            f"path is {shown(path, 100)} with subDir {shown(sub_dir, 100)}; together they are an absolute path without '.' or '..'"
        )
    return "/" + "/".join(parts)


def _digest(text: str | None) -> str | None:
    if text is not None and not _DIGEST.fullmatch(text):
        raise InvalidParameter(f"manifestDigest is {shown(text)}; it is 64 hex digits that the controller wrote, leave it as it was or remove it")
    return text


def _size(text: str) -> int | None:
    """Bytes in whole GiB; a bare number is GiB, as in ECI."""
    return whole_gib(quantity("size", text, 1, LARGEST_VOLUME, "Gi")) if text else None


_SOURCES: dict[str, Callable[[Mapping[str, str], list[str]], HubSpec | NasSpec]] = {"hub": _hub, "nas": _nas}
