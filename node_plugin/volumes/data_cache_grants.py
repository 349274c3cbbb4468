"""Authorization of DataCaches on a node.

A DataCache's grant lets pods of the listed namespaces mount it. Its origin is read with its own credential,
not the pod's.
"""

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
from csi.resolve.resolver import Resolver

log = logging.getLogger("datacache.store")


@dataclass(frozen=True)
class GrantedDataCache:
    """The content of a DataCache that may be mounted, and the credential of its source."""

    cache: DataCache
    content: DataCacheContent
    secrets: Secrets = field(default_factory=Secrets)

    @property
    def content_ref(self) -> ContentRef:
        """The content with the credential that reads it."""
        return ContentRef(self.content.digest, dict(self.content.access), self.secrets)

    @property
    def capacity_bytes(self) -> int:
        """The capacity of a volume of the DataCache."""
        return self.cache.spec.capacity_gib(self.content.content_bytes) * GIB


class DataCacheGrants:
    """Authorizer of DataCaches in `registry`. Thread-safe.

    `driver_namespace` is the namespace of the driver's own prewarm requests, which may use every DataCache.
    """

    def __init__(
        self,
        registry: DataCacheRegistry,
        driver_namespace: str,
        store: Store,
        image_store: ImageStoreClient,
        resolver: Resolver,
    ) -> None:
        self._registry, self._driver_namespace = registry, driver_namespace
        self._store, self._image_store = store, image_store
        self._resolver = resolver

    def authorize_pod(self, bucket: str, path: str, namespace: str) -> GrantedDataCache:
        """Return the DataCache of a bucket and path for a pod of `namespace`.

        Raises NotFound, PermissionDenied if the namespace is not listed, Busy while the DataCache is being
        resolved, FailedPrecondition if that failed.
        """
        cache = find_oldest_at(self._registry.find(bucket=bucket, path=path), bucket, path)
        if cache is None:
            raise NotFound(
                f"there is no DataCache of bucket {bucket}, path {path}; "
                "create it, or name another one (kubectl get datacaches)"
            )
        if not cache.spec.allows_namespace(namespace):
            raise PermissionDenied(
                f"the DataCache of {cache.spec.display_name} is not for namespace {namespace}; "
                "have its owner list the namespace in spec.namespaces"
            )
        return self._grant(cache, cache.mountable_content)

    def authorize_prewarm(self, name: str, namespace: str) -> GrantedDataCache:
        """Return the DataCache of that name for a prewarm request of `namespace`.

        Its next content, if any, takes precedence over the current one. Raises as `authorize_pod`.
        """
        cache = self._registry.get(name)
        if cache is None:
            raise NotFound(
                f"there is no DataCache {name}; create it, or name another one (kubectl get datacaches)"
            )
        if namespace != self._driver_namespace and not cache.spec.allows_namespace(namespace):
            raise PermissionDenied(
                f"the DataCache {name} is not for namespace {namespace}; "
                "have its owner list the namespace in spec.namespaces"
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
            f"the DataCache of {cache.spec.display_name} is {cache.state.phase.value}; "
            "call again when its source is resolved"
        )

    def ensure_manifest(self, key: str, granted: GrantedDataCache, deadline: Deadline) -> None:
        """Ensure that the node's store has the manifest, from the image store if possible, else the origin.

        `key` is the volume whose call waits. Raises as `Resolver.resolve`; if the origin is gone or
        has changed and no image store has the manifest, the message names the remedy.
        """
        digest = granted.content.digest
        # A partial image has its manifest already.
        if self._store.has_manifest(digest):
            return
        store_failure = self._fetch_manifest_from_image_store(digest)
        if store_failure is None:
            return
        try:
            spec = parse_accepted_parameters(granted.content.access).spec
            self._resolver.resolve(key, spec, granted.secrets, deadline, digest)
        except STORE_FALLBACK_ERRORS as error:
            raise with_message(error, f"{error}. {_remedy(granted, store_failure)}") from error

    def _fetch_manifest_from_image_store(self, digest: str) -> str | None:
        """Fetch the manifest from the image store; return None, or the reason why that failed."""
        lookup = self._image_store.find_for_fill(digest)
        if lookup.found is None:
            return lookup.reason or "there is no image store that keeps cached images (--image-store)"
        path = self._store.new_temp_path()
        try:
            self._image_store.write_manifest(digest, path)
            self._store.adopt_manifest(digest, path, lookup.found.image_bytes)
            return None
        # The plugin is shutting down; that is no failure of the image store.
        except Busy:
            raise
        except DataCacheError as error:
            log.info(
                "manifest not read from the image store", extra={"fields": {"image": digest, "reason": error}}
            )
            return str(error)
        finally:
            path.unlink(missing_ok=True)

    def has_trusted_bytes(self, granted: GrantedDataCache) -> bool:
        """Return whether the DataCache's own origin is known to hold the image's bytes without verification.

        That is so if the image store has the image as filled from the same origin scope, for this DataCache
        or another one.
        """
        state = granted.cache.state
        content = granted.content
        # The operator has recorded the upload, so the image store need not be asked.
        if state.in_image_store and state.content == content:
            return True
        found = self._image_store.find_for_fill(content.digest).found
        return found is not None and has_same_origin_scope(found.access, content.access)


def _remedy(granted: GrantedDataCache, store_failure: str) -> str:
    return (
        f"This node does not have the DataCache of {granted.cache.spec.display_name}, and {store_failure}; "
        "restore the origin, or update the DataCache"
    )
