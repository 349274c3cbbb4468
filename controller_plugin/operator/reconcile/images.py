"""Images of DataCaches: resolved at the origin, or found in the image store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from csi.registry.datacaches.data_caches import DataCache, DataCacheContent


class DataCacheImages(Protocol):
    """Access to the images of DataCaches.

    Thread-safe. All methods raise Busy if they take longer (the work continues), and a Source's errors.
    """

    @property
    def has_image_store(self) -> bool:
        """Whether an image store is configured."""

    def resolve(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCacheContent:
        """Return the content of the cache's source, after reading from it with the credential.

        For a SNAPSHOT it is the image with that id. Raises NotFound, InvalidParameter.
        """

    def find_in_image_store(self, digest: str) -> DataCacheContent | None:
        """Return the content of an image in the image store, or None."""
