"""Resolving for volumes, each with its own credential, into the manifests of the node's store."""

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
from csi.worker.results import Resolution


class AuthorizedResolver:
    """Resolver for the volumes of one node; manifests are stored in `store`."""

    def __init__(self, store: Store, resolver: Resolver) -> None:
        self._store, self._resolver = store, resolver

    def resolve(
        self,
        key: str,
        spec: CacheSpec,
        digest: str | None,
        secrets: Secrets,
        deadline: Deadline,
        force_refresh: bool = False,
    ) -> Resolution:
        """Resolve `spec` with `secrets`; the store then has the manifest.

        `force_refresh` is that of `Resolver.resolve`. Raises SourceChanged if `digest` is given and the
        manifest has another one, and as `Resolver.resolve`.
        """

        def matches_digest(found: str) -> bool:
            return digest in (None, found)

        def is_proof_usable(found: str) -> bool:
            # False makes the resolver ask the origin. It does so for a proof of another digest, too: the
            # source may have changed back since.
            return matches_digest(found) and bool(
                self._store.find_sealed(found) or self._store.find_partial(found)
            )

        def adopt_manifest(resolution: Resolution, manifest: Path) -> None:
            if matches_digest(resolution.digest):
                self._store.adopt_manifest(resolution.digest, manifest, resolution.image_bytes)
            else:
                # Now, since the manifest's file is removed after this callback.
                differences.append(self._describe_change(digest, manifest))

        differences: list[str] = []
        resolution = self._resolver.resolve(
            key, spec, secrets, deadline, is_proof_usable, adopt_manifest, force_refresh
        )
        if not matches_digest(resolution.digest):
            difference = next(filter(None, differences), "its manifest differs")
            raise SourceChanged(
                f"{spec.source.display_name} has changed since this volume was created ({difference}); "
                "create a new volume to use its current content"
            )
        return resolution

    def _describe_change(self, digest: str | None, manifest: Path) -> str:
        """Describe how a manifest differs from that of `digest`; "" if the latter is not stored."""
        with suppress(DataCacheError), manifest.open("rb") as stream:
            return describe_changes(self._store.read_manifest(digest or ""), Manifest.read(stream))
        return ""
