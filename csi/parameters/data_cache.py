"""A DataCache as its user writes it in ECI's terms.

Bucket and path are its name; its source has nested options. Source: Alibaba Cloud, ECI, "CreateDataCache" and
the DataCache resource of eci.aliyun.com/v1alpha1.
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
DATA_SOURCE_TYPES = ("URL", "NAS", "OSS", "S3", "SNAPSHOT")
"""Values of `dataSource.type`; S3 is an extension of this driver."""
DEFAULT_GIB = 20
"""Size in GiB of a cache that names none; it grows with its content."""
MAX_GIB, MAX_RETENTION_DAYS = 32_768, 36_500
_BUCKET = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# Ids as in ECI's API.
_SNAPSHOT_ID, _DATA_CACHE_ID = re.compile(r"s-[0-9a-f]{20}"), re.compile(r"edc-[0-9a-f]{20}")
_NETWORK = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MAX_PATH_LENGTH = 1024
# Volume keys, in lower case, that the author of a DataCache may set among the options.
_AUTHOR_OPTIONS = frozenset(("allowpatterns", "ignorepatterns", "preserveownership", "bandwidthlimit"))


@dataclass(frozen=True)
class DataCacheSpec:
    """The desired state of a DataCache, named by `bucket` and `path`.

    `type` is one of DATA_SOURCE_TYPES, `options` are the source's keys without credentials. `size_gib` caps
    the content (None: grows with it), `retention_days` is how long the cache is kept (None: for ever).
    `networks` are the ids of a vSwitch and of a security group ("" stands for a missing first one); the
    first id that is the name of an egress profile selects that profile. `namespaces` are those whose pods
    may mount the cache, empty for all. `node_selector` has the labels of the nodes that load the cache
    before any pod needs it; if empty, one node is enough. A changed `refresh` makes the source be
    resolved again.
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
        """The name of the cache in messages."""
        return f"bucket {self.bucket}, path {self.path}"

    @property
    def snapshot_id(self) -> str:
        """Id of the stored image that the cache is made from, "" if it has a source.

        Raises InvalidParameter.
        """
        return _parse_snapshot_id(self.options) if self.type == "SNAPSHOT" else ""

    def check(self) -> None:
        """Raise InvalidParameter unless the options name a source and hold no credentials.

        Raises PermissionDenied for a key that only an administrator may set.
        """
        if not self.snapshot_id:
            _check_options(self.options)
            self.to_volume_parameters()

    def with_options(self, options: Mapping[str, str]) -> DataCacheSpec:
        """Return a copy with other options."""
        return replace(self, options=dict(options))

    def allows_namespace(self, namespace: str) -> bool:
        """Return whether pods of `namespace` may mount the cache."""
        return not self.namespaces or namespace in self.namespaces

    def to_volume_parameters(self, profiles: Iterable[str] = ()) -> VolumeParameters:
        """Convert the source to volume parameters, with the egress profile that a network selects.

        `profiles` are the names of the operator's egress profiles. Raises InvalidParameter.
        """
        known_profiles = frozenset(profiles)
        profile = next((network for network in self.networks if network in known_profiles), "")
        return _parse_options(self.type, {**self.options, **({"egressProfile": profile} if profile else {})})

    @property
    def credential_scope(self) -> tuple[object, ...]:
        """What one credential is valid for: a kind of source and its hosts. Raises InvalidParameter."""
        if self.snapshot_id:
            return ("SNAPSHOT",)
        source = self.to_volume_parameters().spec.source
        context = source.to_context()
        hub = context.get("repoSource", "").partition("/")[0]
        return (context["type"], hub, context.get("sources", ""), source.addresses)

    def capacity_gib(self, content_bytes: int) -> int:
        """Return the size in GiB: the requested one, else what the content needs, at least DEFAULT_GIB."""
        return self.size_gib or max(DEFAULT_GIB, -(-content_bytes // GIB))


def parse_data_cache(  # noqa: PLR0913 - the fields of a DataCache's spec
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
    """Build a spec from the fields of a DataCache; raises InvalidParameter naming the field.

    The options are taken as they are; `DataCacheSpec.check` checks them.
    """
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
    """Return whether `text` has the form of a DataCacheId."""
    return _DATA_CACHE_ID.fullmatch(text) is not None


def snapshot_id_for(digest: str) -> str:
    """Return the id of an image in ECI's API: "s-" and the first 20 digits of its digest."""
    return f"s-{digest[:20]}"


def split_secrets(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split `options` into those without credentials and the credentials, keyed as in a source's Secret.

    Empty credentials are dropped.
    """
    canonical = {name.lower(): name for name in secret_key_names()}
    secrets = {
        canonical[key.lower()]: value
        for key, value in options.items()
        if key.lower() in canonical and value.strip()
    }
    return {key: value for key, value in options.items() if key.lower() not in canonical}, secrets


def parse_bucket(text: str) -> str:
    """Check the bucket, DEFAULT_BUCKET if empty; raises InvalidParameter."""
    bucket = text.strip() or DEFAULT_BUCKET
    if bucket == RESERVED_BUCKET:
        raise InvalidParameter(f"bucket {RESERVED_BUCKET} is reserved; take another name")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidParameter(
            f"bucket is {redact(bucket)}; it is 1 to 63 letters, digits, '.', '_' and '-', "
            "the first and last a letter or digit"
        )
    return bucket


def parse_path(text: str) -> str:
    """Normalize the path: absolute, without a slash at its end; raises InvalidParameter."""
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


def contains_path(folder: str, path: str) -> bool:
    """Return whether the normalized `path` is `folder` or lies below it."""
    return path == folder or path.startswith(folder + "/")


def _parse_type(text: str) -> str:
    source_type = text.strip().upper()
    if source_type not in DATA_SOURCE_TYPES:
        raise InvalidParameter(
            f"dataSource.type is {redact(text)}; it is one of {', '.join(DATA_SOURCE_TYPES)}"
            if text
            else "dataSource.type is missing"
        )
    return source_type


def _check_range(name: str, value: int | None, maximum: int, unit: str) -> int | None:
    if value is not None and not 1 <= value <= maximum:
        raise InvalidParameter(f"{name} is {value}; it is a number of {unit} from 1 to {maximum}")
    return value


def _parse_networks(ids: Iterable[str]) -> tuple[str, ...]:
    networks = [_parse_network(text) for text in ids]
    # "" is only needed to keep the position of a later id.
    while networks and not networks[-1]:
        networks.pop()
    return tuple(networks)


def _parse_network(text: str) -> str:
    if text and not _NETWORK.fullmatch(text):
        raise InvalidParameter(
            f"a vSwitch or security group is called {redact(text)}; it is an id such as vsw-2ze0example"
        )
    return text


def _parse_snapshot_id(options: Mapping[str, str]) -> str:
    lowercased = {key.lower(): value for key, value in options.items()}
    snapshot_id = lowercased.pop("snapshotid", "").strip()
    if lowercased or not _SNAPSHOT_ID.fullmatch(snapshot_id):
        raise InvalidParameter(
            "dataSource.options of a SNAPSHOT are snapshotId alone, s- and 20 hex digits; "
            f"it is {redact(snapshot_id) if snapshot_id else 'missing'}"
        )
    return snapshot_id


def _check_options(options: Mapping[str, str]) -> None:
    """Allow only keys of the source, and those volume keys that the author of a DataCache may set."""
    sources = {key.lower() for key in source_key_names()}
    for key in options:
        name = SPELLING.find_name(key)
        if name and name.lower() not in sources | _AUTHOR_OPTIONS:
            if name == "egressProfile":
                raise PermissionDenied(
                    "dataSource.options has egressProfile; name a vSwitch or security group "
                    "that the operator has a profile for"
                )
            raise InvalidParameter(
                f"dataSource.options has {name}, which is not a key of a source; remove it"
            )


def _parse_options(type: str, options: Mapping[str, str]) -> VolumeParameters:
    is_hub = type == "URL" and any(SPELLING.find_name(key) in ("repoId", "repoSource") for key in options)
    try:
        return parse_volume_parameters(options if is_hub else {"type": type, **options})
    except InvalidParameter as error:
        raise InvalidParameter(f"dataSource.options: {error}") from error
