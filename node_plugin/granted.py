"""DataCaches on a node: the cache's grant lets pods of its namespaces mount it, and its own credential reads, whatever the pod has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from csi.errors import Busy, DataCacheError, FailedPrecondition, NotFound, OriginUnavailable, PermissionDenied, SourceChanged, SourceNotFound
from csi.images.store import Store
from csi.registry.data_caches import Content, DataCache, DataCaches, first_at
from csi.spec.parameters import parse_kept
from csi.spec.performance import GIB
from csi.waiting import Patience
from csi.worker.stored import StoredImages
from node_plugin.proving import Proving

_GONE = (OriginUnavailable, SourceChanged, SourceNotFound)


@dataclass(frozen=True)
class Granted:
    """What a DataCache holds that may be mounted, and the credential of its source."""

    cache: DataCache
    content: Content
    secrets: Mapping[str, str] = field(repr=False)

    @property
    def capacity_bytes(self) -> int:
        """The size of the disk that a volume of it has."""
        return self.cache.spec.capacity_gib(self.content.content_bytes) * GIB


class GrantedCaches:
    """Looks up DataCaches in `caches`, for one node. `home` is the namespace that the driver's own orders are in. Thread-safe."""

    def __init__(self, caches: DataCaches, home: str, store: Store, stored: StoredImages, proving: Proving) -> None:
        self._caches, self._home, self._store, self._stored, self._proving = caches, home, store, stored, proving

    def at(self, bucket: str, path: str, namespace: str) -> Granted:
        """The cache of a bucket and path, for a pod of `namespace`.

        Raises NotFound, PermissionDenied where it is not for that namespace, Busy while it is being resolved, FailedPrecondition where it failed.
        """
        found = first_at(self._caches.find(bucket=bucket, path=path), bucket, path)
        if found is None:
            raise NotFound(f"there is no DataCache of bucket {bucket}, path {path}; make it, or name another (kubectl get datacaches)")
        if not found.spec.grants(namespace):
            raise PermissionDenied(f"the DataCache of {found.spec.shown} is not for namespace {namespace}; have its owner list it in spec.namespaces")
        return self._granted(found, found.usable)

    def ordered(self, name: str, namespace: str) -> Granted:
        """The cache whose object has a name, as an order of `namespace` wants it: what is coming counts over what is there. Raises as `at`."""
        found = self._caches.named(name)
        if found is None:
            raise NotFound(f"there is no DataCache {name}; make it, or name another (kubectl get datacaches)")
        if namespace != self._home and not found.spec.grants(namespace):
            raise PermissionDenied(f"the DataCache {name} is not for namespace {namespace}; have its owner list it in spec.namespaces")
        return self._granted(found, found.state.coming or found.state.content)

    def _granted(self, found: DataCache, content: Content | None) -> Granted:
        if content:
            return Granted(found, content, self._caches.credential(found))
        if found.state.message and "Failed" in found.state.phase:
            raise FailedPrecondition(f"the DataCache of {found.spec.shown} is {found.state.phase}: {found.state.message}")
        raise Busy(f"the DataCache of {found.spec.shown} is {found.state.phase.value}; call again when it knows what it holds")

    def bring_manifest(self, key: str, granted: Granted, patience: Patience) -> None:
        """Have the manifest in the node's store: it is there, or comes from the image store, or from the origin.

        `key` is the volume whose call waits. Raises FailedPrecondition that says what to do where the origin is gone or has changed
        and no image store has it, and as `Proving.proven`.
        """
        digest = granted.content.digest
        if not (self._store.sealed(digest) or self._store.partial(digest)) and not self._from_store(digest):
            try:
                spec = parse_kept(granted.content.access).spec
                self._proving.proven(key, spec, digest, granted.secrets, patience)
            except _GONE as error:
                raise type(error)(f"{error}. {self._way_out(granted)}") from error

    def _from_store(self, digest: str) -> bool:
        """Whether the manifest came from the image store; that the store cannot be had is the origin's turn."""
        try:
            if self._stored.find(digest) is None:
                return False
            path = self._store.temp_path()
            try:
                kept = self._stored.manifest(digest, path)
                self._store.adopt_manifest(digest, path, kept.image_bytes)
            finally:
                path.unlink(missing_ok=True)
            return True
        except Busy:
            raise
        except DataCacheError:
            return False

    def vouched(self, granted: Granted) -> None:
        """Let a sealed image count for the cache's own place where the image store has it as filled from there: no origin need be asked."""
        digest = granted.content.digest
        place = self._store.place(granted.content.access, granted.secrets)
        if not self._store.sealed(digest) or place in self._store.places(digest):
            return
        kept = self._stored.find(digest)
        if kept and parse_kept(kept.access).spec.source.place == parse_kept(granted.content.access).spec.source.place:
            self._store.note_vouched(digest, place)

    def _way_out(self, granted: Granted) -> str:
        where = "the image store does not have this cache" if self._stored.there else "no image store keeps what was cached (--image-store)"
        return f"This node does not have the DataCache of {granted.cache.spec.shown}, and {where}: bring the origin back, or update the DataCache"
