"""The DataCaches as this process knows them: of a watch, and of what it has put itself, which a watch may tell of later."""

from __future__ import annotations

import threading
from dataclasses import replace

from csi.registry.data_caches import DataCache, DataCacheState, first_at, longest_match


class KnownCaches:
    """DataCaches by the names of their objects. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._caches: dict[str, DataCache] = {}
        self._put: dict[str, DataCacheState] = {}

    def learn(self, name: str, cache: DataCache | None) -> list[str]:
        """Take in what a watch tells; the names of those that may look different now, because this one came or went."""
        with self._guard:
            old = self._caches.pop(name, None)
            if old and (cache is None or cache.uid != old.uid):
                self._put.pop(old.uid, None)
            if cache:
                self._caches[name] = replace(cache, state=self._put.get(cache.uid, cache.state))
            place = (old or cache) and ((old or cache).spec.bucket, (old or cache).spec.path)  # type: ignore[union-attr]
            rivals = [other.name for other in self._caches.values() if (other.spec.bucket, other.spec.path) == place]
            return sorted({name, *rivals})

    def put_state(self, cache: DataCache, state: DataCacheState) -> None:
        """Know the state that was put of this very cache."""
        with self._guard:
            known = self._caches.get(cache.name)
            if known and known.uid == cache.uid:
                self._caches[cache.name], self._put[cache.uid] = replace(known, state=state), state

    def lead(self) -> None:
        """From now on this process puts states; what it has put before may have been followed by another's."""
        with self._guard:
            self._put.clear()

    def named(self, name: str) -> DataCache | None:
        """The one of a name."""
        with self._guard:
            return self._caches.get(name)

    def all(self) -> list[DataCache]:
        """All of them."""
        with self._guard:
            return list(self._caches.values())

    def at(self, bucket: str, path: str) -> DataCache | None:
        """The one that has a bucket and path for its name."""
        return first_at(self.all(), bucket, path)

    def match(self, bucket: str, path: str) -> DataCache | None:
        """The one of the longest path that holds `path`."""
        return longest_match(self.all(), bucket, path)
