"""A DataCache: a cache with a name (bucket and path), as ECI has it, and the Protocol of whoever keeps them.

Source: Alibaba Cloud ECI, DataCache (eci.aliyun.com/v1alpha1) and OpenAPI 2018-08-08, as far as they are documented.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

DEFAULT_BUCKET = "default"
EVERY_NAMESPACE = "*"


class Status(StrEnum):
    """What ECI says of a cache: LOADING brings the data, CREATING makes it last (the image store), UPDATING brings another state of it."""

    LOADING = "Loading"
    CREATING = "Creating"
    AVAILABLE = "Available"
    FAILED = "Failed"
    UPDATING = "Updating"
    UPDATE_FAILED = "UpdateFailed"


@dataclass(frozen=True)
class DataSource:
    """Where the data lives: `type` (URL, NAS, OSS, SNAPSHOT) and its options in ECI's spelling; no credential is among them."""

    type: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SecretRef:
    """A Secret of a namespace; embedded, a file of the registry."""

    namespace: str
    name: str


@dataclass(frozen=True)
class DataCacheSpec:
    """What was asked for.

    `path` is absolute, without a "/" at its end; `size_gib` is None where it may grow with the content; `retention_days` is None for ever.
    `namespaces` are those whose pods may have it ("*": all); `node_selector` has the labels of the nodes that fill it ahead (empty: any one).
    `egress_profile` names the operator's network that stands for `vswitch` and `security_group`.
    """

    path: str
    source: DataSource
    bucket: str = DEFAULT_BUCKET
    size_gib: int | None = None
    retention_days: int | None = None
    security_group: str = ""
    vswitch: str = ""
    secret: SecretRef | None = None
    namespaces: tuple[str, ...] = (EVERY_NAMESPACE,)
    node_selector: Mapping[str, str] = field(default_factory=dict)

    def grants(self, namespace: str) -> bool:
        """Whether pods of `namespace` may have it."""
        return EVERY_NAMESPACE in self.namespaces or namespace in self.namespaces


@dataclass(frozen=True)
class Content:
    """A state of the source: its pinned spec as flat parameters, the manifest's digest (64 hex digits), how many bytes it has."""

    parameters: Mapping[str, str]
    digest: str
    bytes: int


@dataclass(frozen=True)
class DataCacheEvent:
    """Something that happened `count` times, from `first` to `last` (seconds since 1970); `type` is Normal or Warning."""

    type: str
    reason: str
    message: str
    count: int
    first: float
    last: float


@dataclass(frozen=True)
class DataCacheState:
    """How far it is.

    `content` is what pods get, None before the first is Available; `coming` is what is being brought beside it. `observed` is the
    generation that all this is about, `progress` in percent; `stored` says that the image store has the content. Times are in seconds since
    1970, None for never. `events` are the last few, the newest last.
    """

    status: Status = Status.LOADING
    progress: int = 0
    message: str = ""
    observed: int = 0
    content: Content | None = None
    coming: Content | None = None
    stored: bool = False
    expires: float | None = None
    last_matched: float | None = None
    events: tuple[DataCacheEvent, ...] = ()


@dataclass(frozen=True)
class DataCache:
    """An object called `name`. `uid` is never given twice, `generation` counts the changes of `spec` from 1 on; `created` in seconds since 1970.

    `title` is ECI's Name, `tags` and `resource_group` are ECI's; `client_token` is that of the call that made it, "" for none.
    """

    name: str
    spec: DataCacheSpec
    uid: str = ""
    generation: int = 1
    created: float = 0.0
    title: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    resource_group: str = ""
    client_token: str = ""
    state: DataCacheState = field(default_factory=DataCacheState)

    @property
    def id(self) -> str:
        """ECI's DataCacheId: "edc-" and 20 characters; the same for as long as the object is there."""
        return self.name if is_id(self.name) else "edc-" + hashlib.sha256(self.uid.encode()).hexdigest()[:20]

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and path: no two caches have the same."""
        return self.spec.bucket, self.spec.path

    def holds(self, path: str) -> str | None:
        """`path` below this cache, relative ("" for the cache itself); None where it is not below."""
        below = path.rstrip("/") + "/"
        own = self.spec.path.rstrip("/") + "/"
        return below.removeprefix(own).rstrip("/") if below.startswith(own) else None


def is_id(name: str) -> bool:
    """Whether `name` is one that CreateDataCache gave."""
    return len(name) == 24 and name.startswith("edc-") and name[4:].isalnum()


class DataCaches(Protocol):
    """Keeps DataCaches: objects of a cluster, or files of a folder. Thread-safe; what is written is durable when the method returns.

    All but `watch` raise ClusterUnavailable and ClusterForbids where a cluster keeps them, DataCacheError where a folder is damaged.
    """

    def get(self, name: str) -> DataCache | None:
        """The object of this name, None where there is none."""

    def all(self) -> list[DataCache]:
        """All of them, by name."""

    def add(self, cache: DataCache) -> DataCache:
        """Add an object (`uid`, `generation`, `created` are given to it). Raises AlreadyExists where there is one of this name."""

    def change(self, name: str, how: Callable[[DataCache], DataCache]) -> DataCache | None:
        """Replace what was asked for by `how(cache)`; the generation grows where the spec is another. None where there is no object.

        `how` may be called again, for what somebody else changed meanwhile; what it raises is raised. The state is left alone.
        """

    def report(self, cache: DataCache, state: DataCacheState) -> None:
        """Show with this very object (its uid) how far it is; nothing happens where it is gone."""

    def delete(self, name: str) -> None:
        """Remove it; one that is not there is no error. What still has to be undone is done before it is gone for others (a finalizer)."""

    def watch(self, changed: Callable[[str], None]) -> AbstractContextManager[None]:
        """For the block, call `changed(name)` from another thread soon after an object was made, changed in what was asked for, or removed."""
