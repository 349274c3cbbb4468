"""A DataCache as its user writes it, in ECI's words: a bucket and a path for a name, and a source whose keys are nested under options.

Source: Alibaba Cloud, ECI, "CreateDataCache" and the DataCache resource of eci.aliyun.com/v1alpha1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from csi.errors import InvalidParameter, PermissionDenied
from csi.parameters.dialects.table import secret_key_names, source_key_names
from csi.parameters.volume_parameters import SPELLING, VolumeParameters, parse_volume_parameters
from csi.performance.capacity import GIB
from csi.values import redact

DEFAULT_BUCKET, RESERVED_BUCKET = "default", "eci-system"
TYPES = ("URL", "NAS", "OSS", "S3", "SNAPSHOT")
"""`dataSource.type`; S3 is this driver's own."""
DEFAULT_GIB = 20
"""The size of a cache that names none; it grows with the content."""
MAX_GIB, MAX_RETENTION_DAYS = 32_768, 36_500
_BUCKET = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SNAPSHOT_ID, _DATA_CACHE_ID = re.compile(r"s-[0-9a-f]{20}"), re.compile(r"edc-[0-9a-f]{20}")
_NETWORK = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MAX_PATH_LENGTH = 1024
_AUTHOR_OPTIONS = frozenset(("allowpatterns", "ignorepatterns", "preserveownership", "bandwidthlimit"))


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
    def display_name(self) -> str:
        """The name, as messages have it."""
        return f"bucket {self.bucket}, path {self.path}"

    @property
    def snapshot_id(self) -> str:
        """The image of the image store that it is made from, "" where it has a source; raises InvalidParameter."""
        return _parse_snapshot_id(self.options) if self.type == "SNAPSHOT" else ""

    def check(self) -> None:
        """Raise InvalidParameter unless the options name a source, without credentials; PermissionDenied for an administrator's key."""
        if not self.snapshot_id:
            _check_options(self.options)
            self.to_volume_parameters()

    def with_options(self, options: Mapping[str, str]) -> DataCacheSpec:
        """The same with other options."""
        return replace(self, options=dict(options))

    def allows_namespace(self, namespace: str) -> bool:
        """Whether pods of a namespace may mount it."""
        return not self.namespaces or namespace in self.namespaces

    def to_volume_parameters(self, profiles: Iterable[str] = ()) -> VolumeParameters:
        """The source as volumes name theirs, through the operator's egress profile that a network selects; raises InvalidParameter."""
        known = frozenset(profiles)
        profile = next((network for network in self.networks if network in known), "")
        return _parse_options(self.type, {**self.options, **({"egressProfile": profile} if profile else {})})

    @property
    def credential_scope(self) -> tuple[object, ...]:
        """What one credential is for: a kind of source and its hosts. Raises InvalidParameter."""
        if self.snapshot_id:
            return ("SNAPSHOT",)
        source = self.to_volume_parameters().spec.source
        context = source.to_context()
        hub = context.get("repoSource", "").partition("/")[0]
        return (context["type"], hub, context.get("sources", ""), source.addresses)

    def capacity_gib(self, content_bytes: int) -> int:
        """The size that its disks have, in GiB: the one that was asked for, else as much as its content needs, at least DEFAULT_GIB."""
        return self.size_gib or max(DEFAULT_GIB, -(-content_bytes // GIB))


def parse_data_cache(
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
        parse_bucket(bucket),
        parse_path(path),
        _parse_type(type),
        dict(options),
        _check_range("size", size_gib, MAX_GIB, "GiB"),
        _check_range("retentionDays", retention_days, MAX_RETENTION_DAYS, "days"),
        _parse_networks(networks),
        tuple(dict.fromkeys(namespaces)),
        dict(node_selector or {}),
        refresh,
    )


def is_data_cache_id(text: str) -> bool:
    """Whether a text has the form of a DataCacheId."""
    return _DATA_CACHE_ID.fullmatch(text) is not None


def split_secrets(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """`options` without the credentials, and the credentials, as a Secret of the source has them; one that is empty is none."""
    canonical = {name.lower(): name for name in secret_key_names()}
    secrets = {
        canonical[key.lower()]: value
        for key, value in options.items()
        if key.lower() in canonical and value.strip()
    }
    return {key: value for key, value in options.items() if key.lower() not in canonical}, secrets


def parse_bucket(text: str) -> str:
    """The bucket, DEFAULT_BUCKET where none is named; raises InvalidParameter."""
    bucket = text.strip() or DEFAULT_BUCKET
    if bucket == RESERVED_BUCKET:
        raise InvalidParameter(f"bucket {RESERVED_BUCKET} is reserved; take another name")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidParameter(
            f"bucket is {redact(bucket)}; it is 1 to 63 letters, digits, '.', '_' and '-', the first and last a letter or digit"
        )
    return bucket


def parse_path(text: str) -> str:
    """The path in its one spelling: absolute, no slash at its end; raises InvalidParameter."""
    parts = [part for part in text.split("/") if part]
    if (
        not text.startswith("/")
        or not parts
        or {".", ".."} & set(parts)
        or len(text) > _MAX_PATH_LENGTH
        or not text.isprintable()
    ):
        raise InvalidParameter(
            f"path is {redact(text, 100)}; it is an absolute path below /, such as /models/llama, "
            f"without '.' and '..', of at most {_MAX_PATH_LENGTH} characters"
        )
    return "/" + "/".join(parts)


def is_same_or_below(path: str, other: str) -> bool:
    """Whether a checked path is `other` or a folder above it."""
    return other == path or other.startswith(path + "/")


def _parse_type(text: str) -> str:
    found = text.strip().upper()
    if found not in TYPES:
        raise InvalidParameter(
            f"dataSource.type is {redact(text)}; it is one of {', '.join(TYPES)}"
            if text
            else "dataSource.type is missing"
        )
    return found


def _check_range(name: str, value: int | None, maximum: int, unit: str) -> int | None:
    if value is not None and not 1 <= value <= maximum:
        raise InvalidParameter(f"{name} is {value}; it is a number of {unit} from 1 to {maximum}")
    return value


def _parse_networks(ids: Iterable[str]) -> tuple[str, ...]:
    found = [_parse_network(text) for text in ids]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def _parse_network(text: str) -> str:
    if text and not _NETWORK.fullmatch(text):
        raise InvalidParameter(
            f"a vSwitch or security group is called {redact(text)}; it is an id such as vsw-2ze0example"
        )
    return text


def _parse_snapshot_id(options: Mapping[str, str]) -> str:
    given = {key.lower(): value for key, value in options.items()}
    found = given.pop("snapshotid", "").strip()
    if given or not _SNAPSHOT_ID.fullmatch(found):
        raise InvalidParameter(
            f"dataSource.options of a SNAPSHOT are snapshotId alone, s- and 20 hex digits; it is {redact(found) if found else 'missing'}"
        )
    return found


def _check_options(options: Mapping[str, str]) -> None:
    """Only the source's keys, and those of the volume that its author may set."""
    sources = {key.lower() for key in source_key_names()}
    for key in options:
        name = SPELLING.find_name(key)
        if name and name.lower() not in sources | _AUTHOR_OPTIONS:
            if name == "egressProfile":
                raise PermissionDenied(
                    "dataSource.options has egressProfile; name a vSwitch or security group that the operator has a profile for"
                )
            raise InvalidParameter(f"dataSource.options has {name}, which is no key of a source; remove it")


def _parse_options(type: str, options: Mapping[str, str]) -> VolumeParameters:
    is_hub = type == "URL" and any(SPELLING.find_name(key) in ("repoId", "repoSource") for key in options)
    try:
        return parse_volume_parameters(options if is_hub else {"type": type, **options})
    except InvalidParameter as error:
        raise InvalidParameter(f"dataSource.options: {error}") from error
