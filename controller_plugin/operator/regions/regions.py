"""Other places that have an image store of their own, to which caches are copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from csi.registry.datacaches.data_caches import DataCache


@dataclass(frozen=True)
class CopyRequest:
    """What a copy is to be called there, whose it is, and for how many days it is kept, None for ever. `client_token` makes a second call the same copy."""

    bucket: str
    path: str
    title: str = ""
    retention_days: int | None = None
    tags: Mapping[str, str] | None = None
    resource_group: str = ""
    client_token: str = ""


class Regions(Protocol):
    """Copies caches. Thread-safe."""

    def start_copy(self, cache: DataCache, region: str, copy: CopyRequest) -> str:
        """Begin to copy what a cache holds to a region; the DataCacheId that it has there. Raises InvalidParameter for an unknown region."""
