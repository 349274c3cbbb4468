"""Images and orders of a cluster without nodes, for tests of the operator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from csi.errors import DataCacheError, NotFound
from csi.image_store.announcements import Announcement
from csi.registry.datacaches.data_caches import DataCache, DataCacheContent
from csi.registry.prewarms.prewarms import PrewarmState
from csi.registry.prewarms.requests import PrewarmProgress
from csi.worker.pool import WorkerCall
from csi.worker.results import StoredImageInfo


def content(letter: str, size: int = 5, repo: str = "org/name") -> DataCacheContent:
    """Content of `size` bytes whose digest is 64 times a letter."""
    access = {"repoSource": "HuggingFace/Model", "repoId": repo, "revision": "0" * 40}
    return DataCacheContent(letter * 64, access, 4096 + size, size)


@dataclass
class FakeImages:
    """Origins that hold `origin`, by the path of the cache that asks; or the error that it meets.

    `store` is the image store, by digest.
    """

    origin: dict[str, DataCacheContent | DataCacheError] = field(default_factory=dict)
    store: dict[str, DataCacheContent] | None = None
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    @property
    def has_image_store(self) -> bool:
        return self.store is not None

    def resolve(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCacheContent:
        self.asked.append((cache.name, dict(secrets)))
        found = self.origin[cache.spec.path]
        if isinstance(found, DataCacheError):
            raise found
        return found

    def find_in_image_store(self, digest: str) -> DataCacheContent | None:
        return (self.store or {}).get(digest)


@dataclass
class FakeOrders:
    """Orders that nodes have, by the cache's name, with the digest that is wanted.

    `states` says how far they are.
    """

    placed: dict[str, str] = field(default_factory=dict)
    states: dict[str, PrewarmProgress] = field(default_factory=dict)
    changed: Callable[[str], None] = lambda name: None

    def submit(self, cache: DataCache) -> PrewarmProgress:
        wanted = cache.state.next_content or cache.state.content
        assert wanted
        if self.placed.get(cache.name) != wanted.digest:
            self.placed[cache.name] = wanted.digest
            self.states[cache.name] = PrewarmProgress()
        return self.states[cache.name]

    def cancel(self, name: str) -> None:
        self.placed.pop(name, None)

    def list_data_caches(self) -> set[str]:
        return set(self.placed)

    def say(self, name: str, state: PrewarmState, percent: int = 0, message: str = "") -> None:
        """Have the nodes of an order say something."""
        self.states[name] = PrewarmProgress(state, percent, message)

    @contextmanager
    def watch(self, on_change: Callable[[str], None]) -> Iterator[None]:
        self.changed = on_change
        yield


class FakeStored:
    """An image store at `location`: digests of the images, and what is `said` of those to come, by
    DataCacheId. `wanted` are those of the last look of a collector."""

    is_configured = True

    def __init__(self, place: str) -> None:
        self.location, self.images = place, set[str]()
        self.said: dict[str, Announcement] = {}
        self.wanted: set[str] = set()
        self.damaged: list[str] = []

    def find(self, name: str) -> StoredImageInfo | None:
        return StoredImageInfo(name) if name in self.images else None

    def copy_to(self, target: FakeStored, digest: str, call: WorkerCall) -> None:
        if digest not in self.images:
            raise NotFound(f"no image {digest}")
        target.images.add(digest)

    def announce(self, announcement: Announcement) -> None:
        self.said[announcement.id] = announcement

    def list_announcements(self, damaged: Callable[[str], None] = lambda why: None) -> list[Announcement]:
        for why in self.damaged:
            damaged(why)
        return sorted(self.said.values(), key=lambda one: one.id)

    def withdraw(self, announcement: Announcement) -> None:
        self.said.pop(announcement.id, None)

    def collect(self, wanted: Collection[str], grace: float, scratch: Path) -> list[str]:
        self.wanted = set(wanted)
        return []
