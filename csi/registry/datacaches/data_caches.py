"""DataCaches: their specs, their states, and the Protocol of a registry of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from csi.errors import DataCacheError
from csi.parameters.data_cache import DataCacheSpec, contains_path, snapshot_id_for

SECONDS_PER_DAY = 86_400.0


class MalformedDataCache(DataCacheError):
    """A DataCache exists and its object cannot be decoded; the message names the field and the fix."""


class Phase(StrEnum):
    """Phase of a DataCache, in ECI's terms.

    Loading while it is resolved and filled, Creating while it is uploaded to the image store.
    """

    LOADING = "Loading"
    CREATING = "Creating"
    AVAILABLE = "Available"
    FAILED = "Failed"
    UPDATING = "Updating"
    UPDATE_FAILED = "UpdateFailed"


@dataclass(frozen=True)
class SecretRef:
    """Reference to a Secret of the cluster; in a directory registry `namespace` is ""."""

    namespace: str
    name: str


@dataclass(frozen=True)
class DataCacheContent:
    """Resolved content of a DataCache.

    It has the manifest's digest (64 hex digits), the pinned spec as flat parameters, and sizes in bytes.
    """

    digest: str
    access: Mapping[str, str]
    image_bytes: int
    content_bytes: int

    @property
    def snapshot_id(self) -> str:
        """Id of the image in ECI's API."""
        return snapshot_id_for(self.digest)


@dataclass(frozen=True)
class DataCacheEvent:
    """Event of a DataCache, which occurred `count` times between `first` and `last` (seconds since 1970).

    `type` is Normal or Warning.
    """

    type: str
    reason: str
    message: str
    count: int = 1
    first: float = 0.0
    last: float = 0.0


@dataclass(frozen=True)
class DataCacheState:
    """State of a DataCache.

    `generation` is that of the spec it describes.

    `content` is what pods get, None before there is any; `next_content` is what is being prepared, None if
    nothing is. `in_image_store` says if the image store has `content`. `message` says what the DataCache
    waits for or fails with. Times are in seconds since 1970, 0 for never.
    """

    phase: Phase = Phase.LOADING
    percent: int = 0
    generation: int = 0
    content: DataCacheContent | None = None
    next_content: DataCacheContent | None = None
    in_image_store: bool = False
    message: str = ""
    expires_at: float = 0.0
    last_matched_at: float = 0.0
    events: tuple[DataCacheEvent, ...] = ()


@dataclass(frozen=True)
class DataCache:
    """A DataCache.

    `name` is that of its object, `uid` is unique among all objects ever, `generation` counts its specs.

    `secret_ref` refers to the source's credential. `title`, `tags` and `resource_group` are those of the API,
    `client_token` is the ClientToken of the call that created it, and `request_hash` a hash of that call's
    parameters. `assigned_id` is a DataCacheId that was issued before the object existed, as for copies.
    """

    name: str
    uid: str
    generation: int
    created_at: float
    spec: DataCacheSpec
    state: DataCacheState = field(default_factory=DataCacheState)
    secret_ref: SecretRef | None = None
    title: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    resource_group: str = ""
    client_token: str = ""
    request_hash: str = ""
    assigned_id: str = ""

    @property
    def id(self) -> str:
        """DataCacheId by which ECI's users refer to it."""
        return self.assigned_id or data_cache_id_from_uid(self.uid)

    @property
    def phase(self) -> Phase:
        """Phase for the current spec; a status of an older generation is ignored."""
        if self.state.generation == self.generation:
            return self.state.phase
        return Phase.UPDATING if self.state.content else Phase.LOADING

    @property
    def mountable_content(self) -> DataCacheContent | None:
        """Content that a pod can mount now: the ready one, else the next one.

        The pod's node then fills the next one as well.
        """
        return self.state.content or self.state.next_content


def data_cache_id_from_uid(uid: str) -> str:
    """Return the DataCacheId of the object with a uid."""
    return "edc-" + hashlib.sha256(uid.encode()).hexdigest()[:20]


def bucket_path_hash(bucket: str, path: str) -> str:
    """Return a hash of a bucket and a path, as 40 hex digits."""
    return hashlib.sha256(f"{bucket}\0{path}".encode()).hexdigest()[:40]


def find_oldest_at(caches: list[DataCache], bucket: str, path: str) -> DataCache | None:
    """Return the oldest DataCache with a bucket and path.

    There are several only if people create objects by hand.
    """
    matching = [cache for cache in caches if (cache.spec.bucket, cache.spec.path) == (bucket, path)]
    return min(matching, key=lambda cache: (cache.created_at, cache.uid), default=None)


def find_longest_match(caches: list[DataCache], bucket: str, path: str) -> DataCache | None:
    """Return the DataCache of a bucket with the longest path that contains `path`."""
    containing = [
        cache for cache in caches if cache.spec.bucket == bucket and contains_path(cache.spec.path, path)
    ]
    if not containing:
        return None
    longest = max(containing, key=lambda cache: len(cache.spec.path))
    return find_oldest_at(containing, bucket, longest.spec.path)


class DataCacheRegistry(Protocol):
    """Registry of DataCaches. Every change is durable when the method returns. Thread-safe.

    In a cluster all methods raise ClusterUnavailable, and ClusterForbids if a permission is missing.
    """

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        """Return the DataCaches of the given ids, of a bucket, of a bucket and a path, or all; oldest first.

        Malformed objects are left out.
        """

    def get(self, name: str) -> DataCache | None:
        """Return the DataCache whose object has this name, or None; raises MalformedDataCache."""

    def list_names(self) -> set[str]:
        """Return the names of all objects, malformed ones included."""

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        """Create a DataCache with its credential, and return it.

        Spec, title, tags, resource group and token are those of `cache`. Of concurrent calls, in all
        processes, exactly one succeeds. Raises AlreadyExists if another DataCache has its bucket and path.
        """

    def apply_labels(self, cache: DataCache) -> None:
        """Label the object of a cache that `watch` reported, so that it is found by id and path.

        A deleted object is no error.
        """

    def change(
        self,
        cache: DataCache,
        update: Callable[[DataCache], DataCache],
        secrets: Mapping[str, str] | None = None,
    ) -> DataCache | None:
        """Replace the fields that `add` sets by those of `update(cache)`; return None if the cache is gone.

        A new credential is stored first. If `update` removes the `secret_ref`, a credential made for this
        cache alone is deleted (in a cluster, its Secret is emptied).

        `update` may be called again after concurrent changes; what it raises is passed on.
        """

    def write_state(self, cache: DataCache, state: DataCacheState) -> None:
        """Write the state of this cache, except `last_matched_at`; a deleted cache is no error."""

    def write_malformed(self, name: str, message: str) -> None:
        """Write phase Failed and `message` to the malformed object of this name; a deleted one is no error.

        The contents in its status stay, so that `list_digests` has them.
        """

    def write_match_time(self, cache: DataCache, matched_at: float) -> None:
        """Write when a pod last matched this cache, in seconds since 1970; a deleted cache is no error."""

    def delete(self, cache: DataCache) -> None:
        """Delete this cache, and a credential made for it alone; a deleted cache is no error."""

    def read_credential(self, cache: DataCache) -> Mapping[str, str]:
        """Return the credential of the cache's source, empty for none.

        Raises FailedPrecondition if its Secret is missing or not text, Busy while it may still be on its way.
        """

    def is_credential_in_scope(self, cache: DataCache) -> bool:
        """Return whether the cache's credential was given for a source like that of its spec.

        See `DataCacheSpec.credential_scope`. Permission to change an object must not give access to its
        credential. A credential that was not given with a cache is always in scope.
        """

    def list_digests(self) -> set[str]:
        """Return the digests of all images that a DataCache has or will have.

        Malformed objects are included.
        """

    def watch(self, on_change: Callable[[str, DataCache | None], None]) -> AbstractContextManager[None]:
        """Call `on_change(name, cache)` from a thread during the block.

        It is called for all existing caches, then for changes, with None for deleted caches and for those
        that became malformed, which `get` tells apart.
        """
