"""Other regions with image stores of their own, to which caches are copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from csi.registry.datacaches.data_caches import DataCache


@dataclass(frozen=True)
class CopyRequest:
    """Name, owner and lifetime of a copy.

    Retention is in days, None for ever. Calls with one `client_token` make one copy.
    """

    bucket: str
    path: str
    title: str = ""
    retention_days: int | None = None
    tags: Mapping[str, str] | None = None
    resource_group: str = ""
    client_token: str = ""


class Regions(Protocol):
    """Regions that caches can be copied to. Thread-safe."""

    def start_copy(self, cache: DataCache, region: str, copy: CopyRequest) -> str:
        """Start to copy a cache's content to a region; return the copy's DataCacheId.

        Raises InvalidParameter for an unknown region, FailedPrecondition if no image store here has the
        image.
        """
