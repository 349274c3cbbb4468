"""Shell patterns over repository paths, as in `hf download`.

`*` matches across folders; "folder/" matches all files in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

T = TypeVar("T")


class CountingIterator(Iterator[T]):
    """Iterator that counts the items it has passed on (`count`) and keeps none."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self.count = iter(items), 0

    def __next__(self) -> T:
        item = next(self._items)
        self.count += 1
        return item


def is_included(path: str, allow: Sequence[str], ignore: Sequence[str]) -> bool:
    """Return whether `path` matches one of `allow` (empty: everything does) and none of `ignore`."""
    return (not allow or _matches(path, allow)) and not _matches(path, ignore)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)
