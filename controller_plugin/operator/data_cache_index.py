"""The DataCaches as this process knows them: of a watch, and of what it has put itself, which a watch may tell of later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from csi.registry.datacaches.data_caches import DataCache, DataCacheState, find_longest_match, find_oldest_at


class DataCacheIndex:
    """DataCaches by the names of their objects. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caches: dict[str, DataCache] = {}
        self._written_states: dict[str, DataCacheState] = {}
        self._list_lock, self._listed_at = threading.Lock(), float("-inf")
        self._seen_while_listing: set[str] = set()
        self._on_change: Callable[[str], None] = _ignore_change

    def apply_event(self, name: str, cache: DataCache | None) -> None:
        """Take in what a watch tells, and tell of those that may look different now, because this one came or went."""
        with self._lock:
            changed, told = self._apply(name, cache), self._on_change
        for other in changed:
            told(other)

    def _apply(self, name: str, cache: DataCache | None) -> list[str]:
        self._seen_while_listing.add(name)
        old = self._caches.pop(name, None)
        if old and (cache is None or cache.uid != old.uid):
            self._written_states.pop(old.uid, None)
        if cache:
            # A watch may be behind a list.
            newest = old if old and old.uid == cache.uid and old.generation > cache.generation else cache
            self._caches[name] = replace(newest, state=self._written_states.get(cache.uid, newest.state))
        affected = cache or old
        bucket_and_path = affected and (affected.spec.bucket, affected.spec.path)
        old_bucket_and_path = old and (old.spec.bucket, old.spec.path)
        rivals = [
            other.name
            for other in self._caches.values()
            if (other.spec.bucket, other.spec.path) in (bucket_and_path, old_bucket_and_path)
        ]
        return sorted({name, *rivals})

    def set_state(self, cache: DataCache, state: DataCacheState) -> None:
        """Know the state that was put of this very cache."""
        with self._lock:
            known = self._caches.get(cache.name)
            if known and known.uid == cache.uid:
                self._caches[cache.name], self._written_states[cache.uid] = replace(known, state=state), state

    def resync(self, list_caches: Callable[[], list[DataCache]]) -> None:
        """Know them all as `list_caches` gives them now, states too, which a watch for specs may not have told of. Raises as `list_caches`."""
        with self._list_lock, self._list_by_name(list_caches) as found:
            # What was heard meanwhile may be younger than what was found.
            heard = {name: cache for name, cache in self._caches.items() if name in self._seen_while_listing}
            self._caches = {
                name: cache for name, cache in found.items() if name not in self._seen_while_listing
            }
            self._caches |= {name: _choose_newer(cache, found.get(name)) for name, cache in heard.items()}
            self._written_states = {cache.uid: cache.state for cache in self._caches.values()}

    def fetch_missing(self, list_caches: Callable[[], list[DataCache]]) -> None:
        """Know those too that there are by now and that the watch has not told of yet. Who comes while `list_caches` runs shares the next one."""
        asked_at = time.monotonic()
        with self._list_lock:
            if self._listed_at > asked_at:
                return
            self._listed_at = time.monotonic()
            with self._list_by_name(list_caches) as found:
                self._caches |= {
                    name: cache
                    for name, cache in found.items()
                    if name not in self._caches and name not in self._seen_while_listing
                }

    @contextmanager
    def _list_by_name(self, list_caches: Callable[[], list[DataCache]]) -> Iterator[dict[str, DataCache]]:
        """What `list_caches` gives, by name; within the block nothing is learned, and `_seen_while_listing` has what was meanwhile."""
        with self._lock:
            self._seen_while_listing.clear()
        found = {cache.name: cache for cache in list_caches()}
        with self._lock:
            yield found

    @contextmanager
    def notify_on_change(self, on_change: Callable[[str], None]) -> Iterator[None]:
        """For the block, call `on_change` with the name of each that may look different, from the thread that learns of it."""
        with self._lock:
            self._on_change = on_change
        try:
            yield
        finally:
            with self._lock:
                self._on_change = _ignore_change

    def get(self, name: str) -> DataCache | None:
        """The one of a name."""
        with self._lock:
            return self._caches.get(name)

    def list_all(self) -> list[DataCache]:
        """All of them."""
        with self._lock:
            return list(self._caches.values())

    def find_at(self, bucket: str, path: str) -> DataCache | None:
        """The one that has a bucket and path for its name."""
        return find_oldest_at(self.list_all(), bucket, path)

    def find_longest_match(self, bucket: str, path: str) -> DataCache | None:
        """The one of the longest path that holds `path`."""
        return find_longest_match(self.list_all(), bucket, path)


def _choose_newer(from_watch: DataCache, listed: DataCache | None) -> DataCache:
    """The younger spec, with the state that was found."""
    if listed is None or listed.uid != from_watch.uid:
        return from_watch
    return listed if listed.generation >= from_watch.generation else replace(from_watch, state=listed.state)


def _ignore_change(name: str) -> None:
    """Nobody wants to know."""
