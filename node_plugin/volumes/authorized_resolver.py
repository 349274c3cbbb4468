"""What a volume holds, once its own credential has read from the origin."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from csi.concurrency.deadline import Deadline
from csi.errors import DataCacheError, SourceChanged
from csi.images.node_store.store import Store
from csi.manifest.differences import describe_changes
from csi.manifest.manifest import Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.resolve.resolver import Resolver
from csi.worker.protocol import Resolution


class AuthorizedResolver:
    """Resolves for the volumes of one node; manifests go into `store`."""

    def __init__(self, store: Store, resolver: Resolver) -> None:
        self._store, self._resolver = store, resolver

    def resolve(
        self,
        volume_id: str,
        spec: CacheSpec,
        digest: str | None,
        secrets: Secrets,
        deadline: Deadline,
        force_refresh: bool = False,
    ) -> Resolution:
        """What `spec` holds, read from the origin with `secrets`, `force_refresh` where it can move; its manifest is in the store then.

        Raises SourceChanged where a `digest` is given and the manifest has another, and as `Resolver.resolve`.
        """

        def matches_digest(found: str) -> bool:
            return digest in (None, found)

        def has_manifest(found: str) -> bool:
            return matches_digest(found) and bool(
                self._store.find_sealed(found) or self._store.find_partial(found)
            )

        def adopt_manifest(found: Resolution, manifest: Path) -> None:
            if matches_digest(found.digest):
                self._store.adopt_manifest(found.digest, manifest, found.image_bytes)
            else:
                differences.append(self._describe_change(digest, manifest))

        differences: list[str] = []
        found = self._resolver.resolve(
            volume_id, spec, secrets.values, deadline, has_manifest, adopt_manifest, force_refresh
        )
        if not matches_digest(found.digest):
            difference = next(filter(None, differences), "its manifest differs")
            raise SourceChanged(
                f"{spec.source.display_name} is not what this volume was created from any more ({difference}); create a new volume to use what it holds now"
            )
        return found

    def _describe_change(self, digest: str | None, manifest: Path) -> str:
        """How the manifest at a path differs from that of a volume; "" where this node does not know the latter."""
        with suppress(DataCacheError), manifest.open("rb") as stream:
            return describe_changes(self._store.read_manifest(digest or ""), Manifest.read(stream))
        return ""
