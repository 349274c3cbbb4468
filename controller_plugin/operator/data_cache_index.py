"""The DataCaches as this process knows them: of a watch, and of what it has put itself, which a watch may tell of later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from csi.registry.datacaches.data_caches import DataCache, DataCacheState, first_at, longest_match


class KnownCaches:
    """DataCaches by the names of their objects. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._caches: dict[str, DataCache] = {}
        self._put: dict[str, DataCacheState] = {}
        self._listing, self._met = threading.Lock(), float("-inf")
        self._heard: set[str] = set()
        self._changed: Callable[[str], None] = _nobody

    def learn(self, name: str, cache: DataCache | None) -> None:
        """Take in what a watch tells, and tell of those that may look different now, because this one came or went."""
        with self._guard:
            changed, told = self._learn(name, cache), self._changed
        for other in changed:
            told(other)

    def _learn(self, name: str, cache: DataCache | None) -> list[str]:
        self._heard.add(name)
        old = self._caches.pop(name, None)
        if old and (cache is None or cache.uid != old.uid):
            self._put.pop(old.uid, None)
        if cache:
            # A watch may be behind a list.
            newest = old if old and old.uid == cache.uid and old.generation > cache.generation else cache
            self._caches[name] = replace(newest, state=self._put.get(cache.uid, newest.state))
        about = cache or old
        place = about and (about.spec.bucket, about.spec.path)
        was = old and (old.spec.bucket, old.spec.path)
        rivals = [other.name for other in self._caches.values() if (other.spec.bucket, other.spec.path) in (place, was)]
        return sorted({name, *rivals})

    def put_state(self, cache: DataCache, state: DataCacheState) -> None:
        """Know the state that was put of this very cache."""
        with self._guard:
            known = self._caches.get(cache.name)
            if known and known.uid == cache.uid:
                self._caches[cache.name], self._put[cache.uid] = replace(known, state=state), state

    def look(self, find: Callable[[], list[DataCache]]) -> None:
        """Know them all as `find` gives them now, states too, which a watch for specs may not have told of. Raises as `find`."""
        with self._listing, self._listed(find) as found:
            # What was heard meanwhile may be younger than what was found.
            heard = {name: cache for name, cache in self._caches.items() if name in self._heard}
            self._caches = {name: cache for name, cache in found.items() if name not in self._heard}
            self._caches |= {name: _newest(cache, found.get(name)) for name, cache in heard.items()}
            self._put = {cache.uid: cache.state for cache in self._caches.values()}

    def meet(self, find: Callable[[], list[DataCache]]) -> None:
        """Know those too that there are by now and that the watch has not told of yet. Who comes while `find` runs shares the next one."""
        came = time.monotonic()
        with self._listing:
            if self._met > came:
                return
            self._met = time.monotonic()
            with self._listed(find) as found:
                self._caches |= {name: cache for name, cache in found.items() if name not in self._caches and name not in self._heard}

    @contextmanager
    def _listed(self, find: Callable[[], list[DataCache]]) -> Iterator[dict[str, DataCache]]:
        """What `find` gives, by name; within the block nothing is learned, and `_heard` has what was meanwhile."""
        with self._guard:
            self._heard.clear()
        found = {cache.name: cache for cache in find()}
        with self._guard:
            yield found

    @contextmanager
    def telling(self, changed: Callable[[str], None]) -> Iterator[None]:
        """For the block, call `changed` with the name of each that may look different, from the thread that learns of it."""
        with self._guard:
            self._changed = changed
        try:
            yield
        finally:
            with self._guard:
                self._changed = _nobody

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


def _newest(heard: DataCache, found: DataCache | None) -> DataCache:
    """The younger spec, with the state that was found."""
    if found is None or found.uid != heard.uid:
        return heard
    return found if found.generation >= heard.generation else replace(heard, state=found.state)


def _nobody(name: str) -> None:
    """Nobody wants to know."""
