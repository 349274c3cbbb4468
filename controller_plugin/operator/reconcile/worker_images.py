"""Images of DataCaches, resolved by worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controller_plugin.operator.reconcile.images import DataCacheImages
from csi.concurrency.deadline import Deadline
from csi.destinations.allow_list import as_untrusted
from csi.errors import Busy, FailedPrecondition, NotFound
from csi.image_store.client import ImageStoreClient
from csi.parameters.content_ref import Secrets
from csi.registry.datacaches.data_caches import DataCache, DataCacheContent
from csi.resolve.resolver import Resolver
from csi.worker.results import StoredImageInfo

# How long a thread of the work queue waits. A longer resolve continues, and the next reconcile gets its
# result.
_RESOLVE_SECONDS = 20.0


class WorkerDataCacheImages(DataCacheImages):
    """Images resolved by workers. `profiles` are the names of the operator's egress profiles."""

    def __init__(
        self, resolver: Resolver, image_store: ImageStoreClient, profiles: Iterable[str] = ()
    ) -> None:
        self._resolver, self._image_store, self._profiles = resolver, image_store, frozenset(profiles)

    @property
    def has_image_store(self) -> bool:
        return self._image_store.is_configured

    def resolve(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCacheContent:
        if cache.spec.snapshot_id:
            return self._find_snapshot(cache.spec.snapshot_id)
        spec = as_untrusted(cache.spec.to_volume_parameters(self._profiles).spec)
        resolution = self._resolver.resolve(cache.name, spec, Secrets(secrets), Deadline(_RESOLVE_SECONDS))
        return DataCacheContent(
            resolution.digest, resolution.spec.to_context(), resolution.image_bytes, resolution.content_bytes
        )

    def _find_snapshot(self, snapshot_id: str) -> DataCacheContent:
        if not self._image_store.is_configured:
            raise FailedPrecondition(
                f"snapshot {snapshot_id} is an image of the image store, but none is configured; "
                "start the operator with --image-store"
            )
        stored = self._image_store.find(snapshot_id)
        if stored is None:
            self._check_not_being_copied(snapshot_id)
            raise NotFound(
                f"the image store has no image {snapshot_id}; "
                "status.snapshotId of other DataCaches shows existing ones"
            )
        return _content_of(stored)

    def _check_not_being_copied(self, snapshot_id: str) -> None:
        """Raise Busy if the image is being copied here."""
        announcement = next(
            (
                announcement
                for announcement in self._image_store.list_announcements()
                if snapshot_id == announcement.snapshot_id
            ),
            None,
        )
        if announcement:
            raise Busy(f"its image is being copied here, from {announcement.region}")

    def find_in_image_store(self, digest: str) -> DataCacheContent | None:
        stored = self._image_store.find(digest)
        return _content_of(stored) if stored else None


def _content_of(stored: StoredImageInfo) -> DataCacheContent:
    return DataCacheContent(stored.digest, dict(stored.access), stored.image_bytes, stored.content_bytes)
