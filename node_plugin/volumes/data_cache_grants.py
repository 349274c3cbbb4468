"""DataCaches on a node: the cache's grant lets pods of its namespaces mount it, and its own credential reads, whatever the pod has."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from csi.concurrency.deadline import Deadline
from csi.errors import (
    STORE_FALLBACK_ERRORS,
    Busy,
    DataCacheError,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    with_message,
)
from csi.image_store.client import ImageStoreClient
from csi.images.node_store.store import Store
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.origin_scope import has_same_origin_scope
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.performance.capacity import GIB
from csi.registry.datacaches.data_caches import DataCache, DataCacheContent, DataCacheRegistry, find_oldest_at
from node_plugin.volumes.authorized_resolver import AuthorizedResolver

log = logging.getLogger("datacache.store")


@dataclass(frozen=True)
class GrantedDataCache:
    """What a DataCache holds that may be mounted, and the credential of its source."""

    cache: DataCache
    content: DataCacheContent
    secrets: Secrets = field(default_factory=Secrets)

    @property
    def content_ref(self) -> ContentRef:
        """The content, as its own credential reads it."""
        return ContentRef(self.content.digest, dict(self.content.access), self.secrets)

    @property
    def capacity_bytes(self) -> int:
        """The size of the disk that a volume of it has."""
        return self.cache.spec.capacity_gib(self.content.content_bytes) * GIB


class DataCacheGrants:
    """Looks up DataCaches in `caches`, for one node. `home` is the namespace that the driver's own orders are in. Thread-safe."""

    def __init__(
        self,
        registry: DataCacheRegistry,
        driver_namespace: str,
        store: Store,
        image_store: ImageStoreClient,
        resolver: AuthorizedResolver,
    ) -> None:
        self._registry, self._driver_namespace, self._store, self._image_store, self._resolver = (
            registry,
            driver_namespace,
            store,
            image_store,
            resolver,
        )

    def authorize_pod(self, bucket: str, path: str, namespace: str) -> GrantedDataCache:
        """The cache of a bucket and path, for a pod of `namespace`.

        Raises NotFound, PermissionDenied where it is not for that namespace, Busy while it is being resolved, FailedPrecondition where it failed.
        """
        cache = find_oldest_at(self._registry.find(bucket=bucket, path=path), bucket, path)
        if cache is None:
            raise NotFound(
                f"there is no DataCache of bucket {bucket}, path {path}; make it, or name another (kubectl get datacaches)"
            )
        if not cache.spec.allows_namespace(namespace):
            raise PermissionDenied(
                f"the DataCache of {cache.spec.display_name} is not for namespace {namespace}; have its owner list it in spec.namespaces"
            )
        return self._grant(cache, cache.mountable_content)

    def authorize_prewarm(self, name: str, namespace: str) -> GrantedDataCache:
        """The cache whose object has a name, as an order of `namespace` wants it: what is coming counts over what is there. Raises as `authorize_pod`."""
        cache = self._registry.get(name)
        if cache is None:
            raise NotFound(f"there is no DataCache {name}; make it, or name another (kubectl get datacaches)")
        if namespace != self._driver_namespace and not cache.spec.allows_namespace(namespace):
            raise PermissionDenied(
                f"the DataCache {name} is not for namespace {namespace}; have its owner list it in spec.namespaces"
            )
        return self._grant(cache, cache.state.next_content or cache.state.content)

    def _grant(self, cache: DataCache, content: DataCacheContent | None) -> GrantedDataCache:
        if content:
            return GrantedDataCache(cache, content, Secrets(dict(self._registry.read_credential(cache))))
        if cache.state.message and "Failed" in cache.state.phase:
            raise FailedPrecondition(
                f"the DataCache of {cache.spec.display_name} is {cache.state.phase}: {cache.state.message}"
            )
        raise Busy(
            f"the DataCache of {cache.spec.display_name} is {cache.state.phase.value}; call again when it knows what it holds"
        )

    def ensure_manifest(self, key: str, granted: GrantedDataCache, deadline: Deadline) -> None:
        """Have the manifest in the node's store: it is there, or comes from the image store, or from the origin.

        `key` is the volume whose call waits. Raises FailedPrecondition that says what to do where the origin is gone or has changed
        and no image store has it, and as `AuthorizedResolver.resolve`.
        """
        digest = granted.content.digest
        if self._store.find_sealed(digest) or self._store.find_partial(digest):
            return
        store_failure = self._fetch_manifest_from_image_store(digest)
        if store_failure is None:
            return
        try:
            spec = parse_accepted_parameters(granted.content.access).spec
            self._resolver.resolve(key, spec, digest, granted.secrets, deadline)
        except STORE_FALLBACK_ERRORS as error:
            raise with_message(error, f"{error}. {_remedy(granted, store_failure)}") from error

    def _fetch_manifest_from_image_store(self, digest: str) -> str | None:
        """Have the manifest from the image store; None where it is here, else why it is not, which is the origin's turn then."""
        sought = self._image_store.find_for_fill(digest)
        if sought.found is None:
            return sought.why or "no image store keeps what was cached (--image-store)"
        path = self._store.new_temp_path()
        try:
            self._image_store.write_manifest(digest, path)
            self._store.adopt_manifest(digest, path, sought.found.image_bytes)
            return None
        except Busy:
            raise
        except DataCacheError as error:
            log.info("the image store is passed over", extra={"fields": {"image": digest, "reason": error}})
            return str(error)
        finally:
            path.unlink(missing_ok=True)

    def has_trusted_bytes(self, granted: GrantedDataCache) -> bool:
        """Whether the cache's own place is known to hold the image's bytes, so that no origin need be asked: the image store has what was
        filled from there, for this cache or another one of the place."""
        state, content = granted.cache.state, granted.content
        if state.in_image_store and state.content == content:
            return True
        found = self._image_store.find_for_fill(content.digest).found
        return found is not None and has_same_origin_scope(found.access, content.access)


def _remedy(granted: GrantedDataCache, store_failure: str) -> str:
    return f"This node does not have the DataCache of {granted.cache.spec.display_name}, and {store_failure}: bring the origin back, or update the DataCache"
