"""The content of a volume and how it may be read: three values that always travel together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Secrets:
    """The values of a credential by key, as a Kubernetes Secret has them.

    No mapping, so that it cannot take the place of a source's parameters, and without values in its repr.
    """

    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __hash__(self) -> int:
        return hash(frozenset(self.values.items()))

    def __bool__(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True)
class ContentRef:
    """The content with the manifest `digest` (64 hex digits), read from `source` with `secrets`.

    `source` is a pinned spec as flat parameters; empty for the one that the manifest itself names.
    """

    digest: str
    source: Mapping[str, str] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=Secrets)
