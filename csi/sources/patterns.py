"""Shell patterns over the paths of a repository, as `hf download` has them: `*` crosses folders, "folder/" means all in it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase


def is_chosen(path: str, allow: Sequence[str], ignore: Sequence[str]) -> bool:
    """Whether `path` matches one of `allow` (empty: any does) and none of `ignore`."""
    return (not allow or _matches(path, allow)) and not _matches(path, ignore)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)
