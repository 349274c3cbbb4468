"""DataCaches: what they are to be, what has become of them, and the Protocol of whoever keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from csi.parameters.data_cache import DataCacheSpec, is_same_or_below

SECONDS_PER_DAY = 86_400.0


class Phase(StrEnum):
    """Where a DataCache is in its life, in ECI's words: Loading while it is resolved and filled, Creating while it goes to the image store."""

    LOADING = "Loading"
    CREATING = "Creating"
    AVAILABLE = "Available"
    FAILED = "Failed"
    UPDATING = "Updating"
    UPDATE_FAILED = "UpdateFailed"


@dataclass(frozen=True)
class SecretRef:
    """A Secret of the cluster; of a directory `namespace` is ""."""

    namespace: str
    name: str


@dataclass(frozen=True)
class DataCacheContent:
    """What a DataCache turned out to hold: the manifest's digest (64 hex digits), its pinned spec as flat parameters, and bytes."""

    digest: str
    access: Mapping[str, str]
    image_bytes: int
    content_bytes: int

    @property
    def snapshot_id(self) -> str:
        """What ECI's users name the image by, see `csi.image_store.stored_image`."""
        return f"s-{self.digest[:20]}"


@dataclass(frozen=True)
class DataCacheEvent:
    """Something that happened to a DataCache, `count` times between `first` and `last` (seconds since 1970). `type` is Normal or Warning."""

    type: str
    reason: str
    message: str
    count: int = 1
    first: float = 0.0
    last: float = 0.0


@dataclass(frozen=True)
class DataCacheState:
    """What has become of a DataCache. `generation` is that of the spec that it is about.

    `content` is what pods get, None before there is any; `next_content` what is being made ready, None where nothing is.
    `in_image_store`: the image store has `content`. `message` says what it waits for or fails with. Times are seconds since 1970, 0 for never.
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
    """A DataCache. `name` is its object's, `uid` differs for each that was ever made, `generation` for each spec that it had.

    `secret_ref` holds the source's credential, `title`, `tags` and `resource_group` are the API's, `client_token` the ClientToken that made it, and `request_hash`
    a hash of what that call asked for.
    `assigned_id` is the DataCacheId that was given out before there was an object, which copies have.
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
        """What ECI's users name it by."""
        return self.assigned_id or data_cache_id_from_uid(self.uid)

    @property
    def phase(self) -> Phase:
        """Where it is with the spec that it has now: what was said of an earlier one is not what somebody waits for who has changed it."""
        if self.state.generation == self.generation:
            return self.state.phase
        return Phase.UPDATING if self.state.content else Phase.LOADING

    @property
    def mountable_content(self) -> DataCacheContent | None:
        """What a pod can mount now: what is ready, else what is coming, which its node then fills as well."""
        return self.state.content or self.state.next_content


def data_cache_id_from_uid(uid: str) -> str:
    """The DataCacheId of an object."""
    return "edc-" + hashlib.sha256(uid.encode()).hexdigest()[:20]


def bucket_path_hash(bucket: str, path: str) -> str:
    """A name, 40 hex digits, that stands for a bucket and a path."""
    return hashlib.sha256(f"{bucket}\0{path}".encode()).hexdigest()[:40]


def find_oldest_at(caches: list[DataCache], bucket: str, path: str) -> DataCache | None:
    """The cache that has a bucket and path for its name: of several, which only people who make objects by hand can do, the oldest."""
    matching = [cache for cache in caches if (cache.spec.bucket, cache.spec.path) == (bucket, path)]
    return min(matching, key=lambda cache: (cache.created_at, cache.uid), default=None)


def find_longest_match(caches: list[DataCache], bucket: str, path: str) -> DataCache | None:
    """The cache of a bucket that holds a path: of several the one with the longest path."""
    above = [
        cache for cache in caches if cache.spec.bucket == bucket and is_same_or_below(cache.spec.path, path)
    ]
    if not above:
        return None
    longest = max(above, key=lambda cache: len(cache.spec.path))
    return find_oldest_at(above, bucket, longest.spec.path)


class DataCacheRegistry(Protocol):
    """Keeps DataCaches. Every change is durable when the method returns. Thread-safe.

    In a cluster all raise ClusterUnavailable, and ClusterForbids where a right is missing.
    """

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        """Those of the given ids, or of a bucket, or of a bucket and a path, or all; oldest first. Objects that cannot be read are left out."""

    def get(self, name: str) -> DataCache | None:
        """The one whose object has a name."""

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        """Make one of the spec, title, tags, resource group and token of `cache`, with the credential, and return it.

        Of all who add at once, in all processes, one does. Raises AlreadyExists where its bucket and path name another.
        """

    def apply_labels(self, cache: DataCache) -> None:
        """Have the object that `watch` told of found by its id and place; one that is gone is no error."""

    def change(
        self,
        cache: DataCache,
        update: Callable[[DataCache], DataCache],
        secrets: Mapping[str, str] | None = None,
    ) -> DataCache | None:
        """Replace what `add` gives of this very cache by that of `update(cache)`, and before that the credential where one is given; None where it
        is gone. Where `update` leaves no `secret`, the credential that was made for it alone goes.

        `update` may be called again, for what somebody else has changed meanwhile; what it raises is raised.
        """

    def write_state(self, cache: DataCache, state: DataCacheState) -> None:
        """Put the state of this very cache, but for `matched`; one that is gone is no error."""

    def write_match_time(self, cache: DataCache, matched_at: float) -> None:
        """Put the time at which a pod asked for this very cache, in seconds since 1970; one that is gone is no error."""

    def delete(self, cache: DataCache) -> None:
        """Remove this very cache, and a credential that was made for it alone; one that is gone is no error."""

    def read_credential(self, cache: DataCache) -> Mapping[str, str]:
        """The credential of its source, empty for none; raises FailedPrecondition where its Secret is missing or no text, Busy while it may come."""

    def is_credential_in_scope(self, cache: DataCache) -> bool:
        """Whether its credential, where it was given with a cache, was given for a source like the one that its spec names now
        (`DataCacheSpec.credential_scope`); whoever may change an object is not who may read its credential."""

    def list_digests(self) -> set[str]:
        """Those of all images that any of them holds or is to hold, also of objects that cannot be read otherwise."""

    def watch(self, on_change: Callable[[str, DataCache | None], None]) -> AbstractContextManager[None]:
        """For the block, call `on_change(name, cache)` from a thread of its own: for all there are, and soon for what was added or changed,
        with None for what is gone."""
