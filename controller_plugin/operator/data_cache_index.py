"""In-memory index of the DataCaches.

It is fed by a watch and by this process's own writes, which the watch may report later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from csi.registry.datacaches.data_caches import DataCache, DataCacheState, find_longest_match, find_oldest_at


class DataCacheIndex:
    """Index of DataCaches by the names of their objects. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caches: dict[str, DataCache] = {}
        self._written_states: dict[str, DataCacheState] = {}
        self._list_lock, self._listed_at = threading.Lock(), float("-inf")
        # Names in events since the last list began: for these the event is newer than the list.
        self._seen_since_list_began: set[str] = set()
        self._on_change: Callable[[str], None] = _ignore_change

    def apply_event(self, name: str, cache: DataCache | None) -> None:
        """Apply an event of a watch, and report all caches that it affects.

        A cache that comes or goes also affects others with the same bucket and path.
        """
        with self._lock:
            affected, on_change = self._apply(name, cache), self._on_change
        # Outside of the lock, since the callback may call back into the index.
        for other in affected:
            on_change(other)

    def _apply(self, name: str, cache: DataCache | None) -> list[str]:
        self._seen_since_list_began.add(name)
        old = self._caches.pop(name, None)
        if old and (cache is None or cache.uid != old.uid):
            self._written_states.pop(old.uid, None)
        if cache:
            # The watch may lag behind a list.
            newest = old if old and old.uid == cache.uid and old.generation > cache.generation else cache
            # The watch reports new specs only, so the state in its event may be older than the one that this
            # process wrote.
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
        """Store the state that was written for this cache."""
        with self._lock:
            known = self._caches.get(cache.name)
            if known and known.uid == cache.uid:
                self._caches[cache.name], self._written_states[cache.uid] = replace(known, state=state), state

    def resync(self, list_caches: Callable[[], list[DataCache]]) -> None:
        """Replace the index by the result of `list_caches`, states included.

        A watch for specs may not have reported those. Raises as `list_caches`.
        """
        with self._list_lock, self._list_by_name(list_caches) as listed:
            # Events received during the list may be newer than the list.
            watched = {
                name: cache for name, cache in self._caches.items() if name in self._seen_since_list_began
            }
            self._caches = {
                name: cache for name, cache in listed.items() if name not in self._seen_since_list_began
            }
            self._caches |= {name: _choose_newer(cache, listed.get(name)) for name, cache in watched.items()}
            self._written_states = {cache.uid: cache.state for cache in self._caches.values()}

    def fetch_missing(self, list_caches: Callable[[], list[DataCache]]) -> None:
        """Add caches that exist by now and that the watch has not reported yet.

        Calls made while `list_caches` runs share the next list.
        """
        called_at = time.monotonic()
        with self._list_lock:
            if self._listed_at > called_at:
                return
            self._listed_at = time.monotonic()
            with self._list_by_name(list_caches) as listed:
                self._caches |= {
                    name: cache
                    for name, cache in listed.items()
                    if name not in self._caches and name not in self._seen_since_list_began
                }

    @contextmanager
    def _list_by_name(self, list_caches: Callable[[], list[DataCache]]) -> Iterator[dict[str, DataCache]]:
        """Give the result of `list_caches` by name.

        Within the block the index is locked, and `_seen_since_list_began` has the events of the meantime.
        """
        with self._lock:
            self._seen_since_list_began.clear()
        listed = {cache.name: cache for cache in list_caches()}
        with self._lock:
            yield listed

    @contextmanager
    def notify_on_change(self, on_change: Callable[[str], None]) -> Iterator[None]:
        """Call `on_change` during the block with the name of each affected cache.

        The calls come from the thread that applies the event.
        """
        with self._lock:
            self._on_change = on_change
        try:
            yield
        finally:
            with self._lock:
                self._on_change = _ignore_change

    def get(self, name: str) -> DataCache | None:
        """Return the cache whose object has this name, or None."""
        with self._lock:
            return self._caches.get(name)

    def list_all(self) -> list[DataCache]:
        """Return all caches."""
        with self._lock:
            return list(self._caches.values())

    def find_by_path(self, bucket: str, path: str) -> DataCache | None:
        """Return the cache with this bucket and path, or None."""
        return find_oldest_at(self.list_all(), bucket, path)

    def find_longest_match(self, bucket: str, path: str) -> DataCache | None:
        """Return the cache with the longest path that contains `path`, or None."""
        return find_longest_match(self.list_all(), bucket, path)


def _choose_newer(from_watch: DataCache, listed: DataCache | None) -> DataCache:
    """Return the newer spec, with the listed state."""
    if listed is None or listed.uid != from_watch.uid:
        return from_watch
    return listed if listed.generation >= from_watch.generation else replace(from_watch, state=listed.state)


def _ignore_change(name: str) -> None:
    """Do nothing."""
