"""What a volume holds, once its own credential has read from the origin."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from csi.concurrency.deadline import Patience
from csi.errors import DataCacheError, SourceChanged
from csi.images.node_store.store import Store
from csi.manifest.differences import changes
from csi.manifest.manifest import Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.resolve.resolver import Resolver
from csi.worker.protocol import Resolution


class Proving:
    """Resolves for the volumes of one node; manifests go into `store`."""

    def __init__(self, store: Store, resolver: Resolver) -> None:
        self._store, self._resolver = store, resolver

    def proven(
        self, volume_id: str, spec: CacheSpec, digest: str | None, secrets: Mapping[str, str], patience: Patience, anew: bool = False
    ) -> Resolution:
        """What `spec` holds, read from the origin with `secrets`, `anew` where it can move; its manifest is in the store then.

        Raises SourceChanged where a `digest` is given and the manifest has another, and as `Resolver.resolve`.
        """

        def fits(found: str) -> bool:
            return digest in (None, found)

        def has(found: str) -> bool:
            return fits(found) and bool(self._store.sealed(found) or self._store.partial(found))

        def keep(found: Resolution, manifest: Path) -> None:
            if fits(found.digest):
                self._store.adopt_manifest(found.digest, manifest, found.image_bytes)
            else:
                changed.append(self._what_changed(digest, manifest))

        changed: list[str] = []
        found = self._resolver.resolve(volume_id, spec, secrets, patience, has, keep, anew)
        if not fits(found.digest):
            what = next(filter(None, changed), "its manifest differs")
            raise SourceChanged(
                f"{spec.source.shown} is not what this volume was created from any more ({what}); create a new volume to use what it holds now"
            )
        return found

    def _what_changed(self, digest: str | None, manifest: Path) -> str:
        """How the manifest at a path differs from that of a volume; "" where this node does not know the latter."""
        with suppress(DataCacheError), manifest.open("rb") as stream:
            return changes(self._store.manifest(digest or ""), Manifest.read(stream))
        return ""
