"""What DataCaches hold, asked by worker processes: see Images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from csi.concurrency.deadline import Deadline
from csi.destinations.allow_list import as_untrusted
from csi.errors import Busy, FailedPrecondition, NotFound
from csi.image_store.client import ImageStoreClient, StoredImageInfo
from csi.registry.datacaches.data_caches import DataCache, DataCacheContent
from csi.resolve.resolver import Resolver

# A thread of the work queue waits for so long; what takes longer goes on, and is found by the next look.
_RESOLVE_SECONDS = 20.0


class WorkerDataCacheImages:
    """See Images. `profiles` are the names of the operator's egress profiles."""

    def __init__(
        self, resolver: Resolver, image_store: ImageStoreClient, profiles: Iterable[str] = ()
    ) -> None:
        self._resolver, self._image_store, self._profiles = resolver, image_store, frozenset(profiles)

    @property
    def has_image_store(self) -> bool:
        """See Images."""
        return self._image_store.is_configured

    def resolve(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCacheContent:
        """See Images."""
        if cache.spec.snapshot_id:
            return self._find_snapshot(cache.spec.snapshot_id)
        spec = as_untrusted(cache.spec.to_volume_parameters(self._profiles).spec)
        found = self._resolver.resolve(cache.name, spec, secrets, Deadline(_RESOLVE_SECONDS))
        return DataCacheContent(found.digest, found.spec.to_context(), found.image_bytes, found.content_bytes)

    def _find_snapshot(self, snapshot_id: str) -> DataCacheContent:
        if not self._image_store.is_configured:
            raise FailedPrecondition(
                f"snapshot {snapshot_id} is an image of the image store, and there is none; start the operator with --image-store"
            )
        found = self._image_store.find(snapshot_id)
        if found is None:
            self._check_not_being_copied(snapshot_id)
            raise NotFound(
                f"the image store has no image {snapshot_id}; status.snapshotId of other DataCaches says which there are"
            )
        return _content_of(found)

    def _check_not_being_copied(self, snapshot_id: str) -> None:
        """Raise Busy where the image is on its way here."""
        coming = next(
            (one for one in self._image_store.list_announcements() if snapshot_id == one.snapshot_id), None
        )
        if coming:
            raise Busy(f"its image is being copied here, from {coming.region}")

    def find_in_image_store(self, digest: str) -> DataCacheContent | None:
        """See Images."""
        found = self._image_store.find(digest)
        return _content_of(found) if found else None


def _content_of(stored: StoredImageInfo) -> DataCacheContent:
    return DataCacheContent(stored.digest, dict(stored.access), stored.image_bytes, stored.content_bytes)
