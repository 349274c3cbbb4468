"""DataCaches on a node: the cache's grant lets pods of its namespaces mount it, and its own credential reads, whatever the pod has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Patience
from csi.errors import GONE, Busy, DataCacheError, FailedPrecondition, NotFound, PermissionDenied, with_message
from csi.image_store.client import StoredImages
from csi.images.node_store.store import Store
from csi.parameters.origin_scope import is_of_place
from csi.parameters.volume_parameters import parse_kept
from csi.performance.capacity import GIB
from csi.registry.datacaches.data_caches import Content, DataCache, DataCaches, first_at
from node_plugin.volumes.authorized_resolver import Proving

log = logging.getLogger("datacache.store")


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
        if self._store.sealed(digest) or self._store.partial(digest):
            return
        why = self._from_store(digest)
        if why is None:
            return
        try:
            spec = parse_kept(granted.content.access).spec
            self._proving.proven(key, spec, digest, granted.secrets, patience)
        except GONE as error:
            raise with_message(error, f"{error}. {_way_out(granted, why)}") from error

    def _from_store(self, digest: str) -> str | None:
        """Have the manifest from the image store; None where it is here, else why it is not, which is the origin's turn then."""
        sought = self._stored.seek(digest)
        if sought.found is None:
            return sought.why or "no image store keeps what was cached (--image-store)"
        path = self._store.temp_path()
        try:
            self._stored.manifest(digest, path)
            self._store.adopt_manifest(digest, path, sought.found.image_bytes)
            return None
        except Busy:
            raise
        except DataCacheError as error:
            log.info("the image store is passed over", extra={"fields": {"image": digest, "reason": error}})
            return str(error)
        finally:
            path.unlink(missing_ok=True)

    def is_known(self, granted: Granted) -> bool:
        """Whether the cache's own place is known to hold the image's bytes, so that no origin need be asked: the image store has what was
        filled from there, for this cache or another one of the place."""
        state, content = granted.cache.state, granted.content
        if state.is_kept and state.content == content:
            return True
        found = self._stored.seek(content.digest).found
        return found is not None and is_of_place(found.access, content.access)


def _way_out(granted: Granted, why: str) -> str:
    return f"This node does not have the DataCache of {granted.cache.spec.shown}, and {why}: bring the origin back, or update the DataCache"
