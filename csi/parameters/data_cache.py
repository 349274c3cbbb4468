"""A DataCache as its user writes it, in ECI's words: a bucket and a path for a name, and a source whose keys are nested under options.

Source: Alibaba Cloud, ECI, "CreateDataCache" and the DataCache resource of eci.aliyun.com/v1alpha1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from csi.errors import InvalidParameter, PermissionDenied
from csi.parameters.dialects.table import secret_names, source_keys
from csi.parameters.volume_parameters import SPELLING, VolumeParameters, parse
from csi.performance.capacity import GIB
from csi.values import shown

DEFAULT_BUCKET, RESERVED_BUCKET = "default", "eci-system"
TYPES = ("URL", "NAS", "OSS", "S3", "SNAPSHOT")
"""`dataSource.type`; S3 is this driver's own."""
DEFAULT_GIB = 20
"""The size of a cache that names none; it grows with the content."""
MOST_GIB, MOST_DAYS = 32_768, 36_500
_BUCKET = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SNAPSHOT, _ID = re.compile(r"s-[0-9a-f]{20}"), re.compile(r"edc-[0-9a-f]{20}")
_NETWORK = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MOST_PATH = 1024
_OWN_OPTIONS = frozenset(("allowpatterns", "ignorepatterns", "preserveownership", "bandwidthlimit"))


@dataclass(frozen=True)
class DataCacheSpec:
    """What a DataCache is to be. `bucket` and `path` name it; `type` is one of TYPES, `options` the source's keys, without a credential.

    `size_gib` is the most that it may hold, None where it grows with its content; `retention_days` how long it is kept, None for ever.
    `networks` are the ids of a vSwitch and of a security group, "" for none before another: the first that is called as one of the operator's egress
    profiles selects that. `namespaces` are those whose pods may mount it, empty for all; `node_selector` the labels of the nodes that have
    it before any pod asks for it, empty where one node is enough. Another `refresh` has its source looked at anew.
    """

    bucket: str
    path: str
    type: str
    options: Mapping[str, str] = field(default_factory=dict)
    size_gib: int | None = None
    retention_days: int | None = None
    networks: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    refresh: str = ""

    @property
    def shown(self) -> str:
        """The name, as messages have it."""
        return f"bucket {self.bucket}, path {self.path}"

    @property
    def snapshot_id(self) -> str:
        """The image of the image store that it is made from, "" where it has a source; raises InvalidParameter."""
        return _snapshot(self.options) if self.type == "SNAPSHOT" else ""

    def check(self) -> None:
        """Raise InvalidParameter unless the options name a source, without credentials; PermissionDenied for an administrator's key."""
        if not self.snapshot_id:
            _check_options(self.options)
            self.parameters()

    def with_options(self, options: Mapping[str, str]) -> DataCacheSpec:
        """The same with other options."""
        return replace(self, options=dict(options))

    def grants(self, namespace: str) -> bool:
        """Whether pods of a namespace may mount it."""
        return not self.namespaces or namespace in self.namespaces

    def parameters(self, profiles: Iterable[str] = ()) -> VolumeParameters:
        """The source as volumes name theirs, through the operator's egress profile that a network selects; raises InvalidParameter."""
        known = frozenset(profiles)
        profile = next((network for network in self.networks if network in known), "")
        return _parsed(self.type, {**self.options, **({"egressProfile": profile} if profile else {})})

    @property
    def credential_for(self) -> tuple[object, ...]:
        """What one credential is for: a kind of source and its hosts. Raises InvalidParameter."""
        if self.snapshot_id:
            return ("SNAPSHOT",)
        source = self.parameters().spec.source
        context = source.to_context()
        hub = context.get("repoSource", "").partition("/")[0]
        return (context["type"], hub, context.get("sources", ""), source.addresses)

    def capacity_gib(self, content_bytes: int) -> int:
        """The size that its disks have, in GiB: the one that was asked for, else as much as its content needs, at least DEFAULT_GIB."""
        return self.size_gib or max(DEFAULT_GIB, -(-content_bytes // GIB))


def data_cache(
    bucket: str,
    path: str,
    type: str,
    options: Mapping[str, str],
    *,
    size_gib: int | None = None,
    retention_days: int | None = None,
    networks: Iterable[str] = (),
    namespaces: Iterable[str] = (),
    node_selector: Mapping[str, str] | None = None,
    refresh: str = "",
) -> DataCacheSpec:
    """The spec that these fields mean, its options as they are (see `check`). Raises InvalidParameter that names the field."""
    return DataCacheSpec(
        checked_bucket(bucket),
        checked_path(path),
        _type(type),
        dict(options),
        _within("size", size_gib, MOST_GIB, "GiB"),
        _within("retentionDays", retention_days, MOST_DAYS, "days"),
        _networks(networks),
        tuple(dict.fromkeys(namespaces)),
        dict(node_selector or {}),
        refresh,
    )


def is_data_cache_id(text: str) -> bool:
    """Whether a text has the form of a DataCacheId."""
    return _ID.fullmatch(text) is not None


def split_secrets(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """`options` without the credentials, and the credentials, as a Secret of the source has them; one that is empty is none."""
    canonical = {name.lower(): name for name in secret_names()}
    secrets = {canonical[key.lower()]: value for key, value in options.items() if key.lower() in canonical and value.strip()}
    return {key: value for key, value in options.items() if key.lower() not in canonical}, secrets


def checked_bucket(text: str) -> str:
    """The bucket, DEFAULT_BUCKET where none is named; raises InvalidParameter."""
    bucket = text.strip() or DEFAULT_BUCKET
    if bucket == RESERVED_BUCKET:
        raise InvalidParameter(f"bucket {RESERVED_BUCKET} is reserved; take another name")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidParameter(f"bucket is {shown(bucket)}; it is 1 to 63 letters, digits, '.', '_' and '-', the first and last a letter or digit")
    return bucket


def checked_path(text: str) -> str:
    """The path in its one spelling: absolute, no slash at its end; raises InvalidParameter."""
    parts = [part for part in text.split("/") if part]
    if not text.startswith("/") or not parts or {".", ".."} & set(parts) or len(text) > _MOST_PATH or not text.isprintable():
        raise InvalidParameter(
            f"path is {shown(text, 100)}; it is an absolute path below /, such as /models/llama, "
            f"without '.' and '..', of at most {_MOST_PATH} characters"
        )
    return "/" + "/".join(parts)


def holds(path: str, other: str) -> bool:
    """Whether a checked path is `other` or a folder above it."""
    return other == path or other.startswith(path + "/")


def _type(text: str) -> str:
    found = text.strip().upper()
    if found not in TYPES:
        raise InvalidParameter(f"dataSource.type is {shown(text)}; it is one of {', '.join(TYPES)}" if text else "dataSource.type is missing")
    return found


def _within(name: str, value: int | None, most: int, unit: str) -> int | None:
    if value is not None and not 1 <= value <= most:
        raise InvalidParameter(f"{name} is {value}; it is a number of {unit} from 1 to {most}")
    return value


def _networks(ids: Iterable[str]) -> tuple[str, ...]:
    found = [_network(text) for text in ids]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def _network(text: str) -> str:
    if text and not _NETWORK.fullmatch(text):
        raise InvalidParameter(f"a vSwitch or security group is called {shown(text)}; it is an id such as vsw-2ze0example")
    return text


def _snapshot(options: Mapping[str, str]) -> str:
    given = {key.lower(): value for key, value in options.items()}
    found = given.pop("snapshotid", "").strip()
    if given or not _SNAPSHOT.fullmatch(found):
        raise InvalidParameter(
            f"dataSource.options of a SNAPSHOT are snapshotId alone, s- and 20 hex digits; it is {shown(found) if found else 'missing'}"
        )
    return found


def _check_options(options: Mapping[str, str]) -> None:
    """Only the source's keys, and those of the volume that its author may set."""
    sources = {key.lower() for key in source_keys()}
    for key in options:
        name = SPELLING.name_of(key)
        if name and name.lower() not in sources | _OWN_OPTIONS:
            if name == "egressProfile":
                raise PermissionDenied("dataSource.options has egressProfile; name a vSwitch or security group that the operator has a profile for")
            raise InvalidParameter(f"dataSource.options has {name}, which is no key of a source; remove it")


def _parsed(type: str, options: Mapping[str, str]) -> VolumeParameters:
    is_hub = type == "URL" and any(SPELLING.name_of(key) in ("repoId", "repoSource") for key in options)
    try:
        return parse(options if is_hub else {"type": type, **options})
    except InvalidParameter as error:
        raise InvalidParameter(f"dataSource.options: {error}") from error
