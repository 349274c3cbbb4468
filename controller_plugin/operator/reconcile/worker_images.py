"""What DataCaches hold, asked by worker processes: see Images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from csi.concurrency.deadline import Patience
from csi.destinations.allow_list import named_by_user
from csi.errors import Busy, FailedPrecondition, NotFound
from csi.image_store.client import Stored, StoredImages
from csi.registry.datacaches.data_caches import Content, DataCache
from csi.resolve.resolver import Resolver

# A thread of the work queue waits for so long; what takes longer goes on, and is found by the next look.
_RESOLVE_SECONDS = 20.0


class WorkerImages:
    """See Images. `profiles` are the names of the operator's egress profiles."""

    def __init__(self, resolver: Resolver, stored: StoredImages, profiles: Iterable[str] = ()) -> None:
        self._resolver, self._stored, self._profiles = resolver, stored, frozenset(profiles)

    @property
    def has_store(self) -> bool:
        """See Images."""
        return self._stored.there

    def resolve(self, cache: DataCache, secrets: Mapping[str, str]) -> Content:
        """See Images."""
        if cache.spec.snapshot_id:
            return self._snapshot(cache.spec.snapshot_id)
        spec = named_by_user(cache.spec.parameters(self._profiles).spec)
        found = self._resolver.resolve(cache.name, spec, secrets, Patience(_RESOLVE_SECONDS))
        return Content(found.digest, found.spec.to_context(), found.image_bytes, found.content_bytes)

    def _snapshot(self, snapshot_id: str) -> Content:
        if not self._stored.there:
            raise FailedPrecondition(
                f"snapshot {snapshot_id} is an image of the image store, and there is none; start the operator with --image-store"
            )
        found = self._stored.find(snapshot_id)
        if found is None:
            self._await_copy(snapshot_id)
            raise NotFound(f"the image store has no image {snapshot_id}; status.snapshotId of other DataCaches says which there are")
        return _content(found)

    def _await_copy(self, snapshot_id: str) -> None:
        """Raise Busy where the image is on its way here."""
        coming = next((one for one in self._stored.announced() if snapshot_id == one.snapshot_id), None)
        if coming:
            raise Busy(f"its image is being copied here, from {coming.region}")

    def kept(self, digest: str) -> Content | None:
        """See Images."""
        found = self._stored.find(digest)
        return _content(found) if found else None


def _content(found: Stored) -> Content:
    return Content(found.digest, dict(found.access), found.image_bytes, found.content_bytes)
