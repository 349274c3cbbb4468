"""What DataCaches hold: asked of the origin, or found in the image store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from csi.registry.datacaches.data_caches import DataCache, DataCacheContent


class DataCacheImages(Protocol):
    """Thread-safe. All raise Busy where it takes longer (the work goes on), and the errors of a Source."""

    @property
    def has_image_store(self) -> bool:
        """Whether there is an image store."""

    def resolve(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCacheContent:
        """What its source holds now, once the credential has read from it; of a SNAPSHOT the image of that id. Raises NotFound, InvalidParameter."""

    def find_in_image_store(self, digest: str) -> DataCacheContent | None:
        """The image of a digest in the image store, None where that has none, or there is no image store."""
