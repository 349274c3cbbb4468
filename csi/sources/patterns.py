"""Shell patterns over the paths of a repository, as `hf download` has them: `*` crosses folders, "folder/" means all in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

T = TypeVar("T")


class CountingIterator(Iterator[T]):
    """Passes `items` on one by one, keeping none; `count` is how many there were so far."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self.count = iter(items), 0

    def __next__(self) -> T:
        item = next(self._items)
        self.count += 1
        return item


def is_included(path: str, allow: Sequence[str], ignore: Sequence[str]) -> bool:
    """Whether `path` matches one of `allow` (empty: any does) and none of `ignore`."""
    return (not allow or _matches(path, allow)) and not _matches(path, ignore)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)
