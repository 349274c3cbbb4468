"""DataCaches as objects of the cluster.

They are written by people, the API and the operator, and read by nodes and the webhook.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from csi.cluster.api_server import APPLY_PATCH, MERGE_PATCH, METADATA_LIST, ApiServer, api_path
from csi.cluster.watch import Watch, list_pages
from csi.errors import AlreadyExists, Busy, ClusterConflict, DataCacheError, FailedPrecondition, NotFound
from csi.parameters.data_cache import is_data_cache_id
from csi.registry.custom_resource import format_time
from csi.registry.datacaches.codec import (
    BUCKET_PATH_LABEL,
    GROUP,
    ID_LABEL,
    KIND,
    LAST_MATCHED_KEY,
    PLURAL,
    VERSION,
    build_annotations,
    build_labels,
    created_name,
    decode,
    encode_malformed_status,
    encode_spec,
    encode_status,
    list_digests,
)
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheRegistry,
    DataCacheState,
    SecretRef,
    bucket_path_hash,
    find_oldest_at,
)
from csi.registry.notify import notify_watcher

log = logging.getLogger("datacache.registry")

CREDENTIAL_SCOPE_ANNOTATION = "datacache.csi.io/credential-for"
"""Annotation of a Secret that was created for a DataCache: a hash of the source it was given for."""
DATA_CACHE_MANAGER, DATA_CACHE_STATUS_MANAGER = "datacache-operator", "datacache-operator-status"
_DATA_CACHES_PATH = api_path("apis", GROUP, VERSION, PLURAL)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_MAX_TRIES = 8
_PAGE_SIZE = 500
# The API creates the object first, since it owns the Secret.
_CREATION_GRACE = 60.0


class KubernetesDataCacheRegistry(DataCacheRegistry):
    """Registry of DataCache objects.

    Credentials become Secrets of `namespace`, each owned by its DataCache.
    """

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self._namespace = server, namespace
        self._unlabelled: set[str] = set()

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        # Objects that the operator has not labelled yet are found neither by id nor by path.
        if ids and not (ids := tuple(filter(is_data_cache_id, ids))):
            return []
        selector = (
            f"{ID_LABEL} in ({','.join(ids)})"
            if ids
            else f"{BUCKET_PATH_LABEL}={bucket_path_hash(bucket, path)}"
            if bucket and path
            else ""
        )
        caches = [
            cache
            for page in list_pages(self._server, _DATA_CACHES_PATH, selector, _PAGE_SIZE)
            for obj in page["items"]
            if (cache := _decode_or_log(obj))
        ]
        matching = [
            cache
            for cache in caches
            if bucket in ("", cache.spec.bucket)
            and path in ("", cache.spec.path)
            and (not ids or cache.id in ids)
        ]
        return sorted(matching, key=lambda cache: (cache.created_at, cache.uid))

    def get(self, name: str) -> DataCache | None:
        obj = self._get_object(name)
        return decode(obj) if obj else None

    def list_names(self) -> set[str]:
        pages = list_pages(self._server, _DATA_CACHES_PATH, "", _PAGE_SIZE, METADATA_LIST)
        return {obj["metadata"]["name"] for page in pages for obj in page["items"]}

    def _get_object(self, name: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", api_path("apis", GROUP, VERSION, PLURAL, name))
        except NotFound:
            return None

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        already_exists = AlreadyExists(
            f"a DataCache of {cache.spec.display_name} exists already; "
            "update or delete it, or choose another path"
        )
        if find_oldest_at(
            self.find(bucket=cache.spec.bucket, path=cache.spec.path), cache.spec.bucket, cache.spec.path
        ):
            raise already_exists
        # The name is derived from bucket and path, so that concurrent calls for one path conflict on the
        # server.
        name = created_name(cache.spec.bucket, cache.spec.path)
        new_cache = replace(
            cache, name=name, secret_ref=self._owned_secret_ref(name) if secrets else cache.secret_ref
        )
        try:
            obj = self._server.call(
                "POST", _DATA_CACHES_PATH, {"fieldManager": DATA_CACHE_MANAGER}, _build_object(new_cache)
            )
        except ClusterConflict:
            raise already_exists from None
        self._store_credential(decode(obj), secrets)
        return decode(self._ensure_labels(obj))

    def _ensure_labels(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Return the object with the labels by which it is found.

        The id's label needs the uid, which the server assigns.
        """
        labels = build_labels(decode(obj))
        if _has_labels(obj, labels):
            return obj
        patch = {"metadata": {"uid": obj["metadata"]["uid"], "labels": labels}}
        return self._server.call(
            "PATCH", _object_path(obj), {"fieldManager": DATA_CACHE_MANAGER}, patch, MERGE_PATCH
        )

    def apply_labels(self, cache: DataCache) -> None:
        if cache.uid not in self._unlabelled:
            return
        obj = self._get_object(cache.name)
        if obj and obj["metadata"]["uid"] == cache.uid:
            self._ensure_labels(obj)
        self._unlabelled.discard(cache.uid)

    def change(
        self,
        cache: DataCache,
        update: Callable[[DataCache], DataCache],
        secrets: Mapping[str, str] | None = None,
    ) -> DataCache | None:
        for _ in range(_MAX_TRIES):
            obj = self._get_object(cache.name)
            if obj is None or obj["metadata"]["uid"] != cache.uid:
                return None
            current = decode(obj)
            changed = update(
                replace(current, secret_ref=self._owned_secret_ref(current.name)) if secrets else current
            )
            # Store the credential before the spec: one that is still in the object must be in the Secret
            # before it is
            # removed from there.
            self._store_credential(changed, secrets or {})
            with suppress(ClusterConflict):
                written = self._replace_spec(obj, changed)
                if changed.secret_ref is None and current.secret_ref == self._owned_secret_ref(current.name):
                    self._clear_credential(current, current.secret_ref)
                return written
        raise ClusterConflict(f"the DataCache {cache.name} is changed again and again; the call is retried")

    def _clear_credential(self, cache: DataCache, secret: SecretRef) -> None:
        # An apply without keys removes those that this field manager wrote. The empty object stays, and is
        # deleted with its DataCache.
        self._write_secret(cache, secret, {})

    def list_digests(self) -> set[str]:
        return {
            digest
            for page in list_pages(self._server, _DATA_CACHES_PATH, "", _PAGE_SIZE)
            for obj in page["items"]
            for digest in list_digests(obj)
        }

    def _replace_spec(self, obj: dict[str, Any], changed: DataCache) -> DataCache:
        """Replace the spec of the exact version that was read.

        kubectl's record of the last applied spec may hold a credential, and is removed once the cache has a
        Secret.
        """
        # A path may be spelled in several ways, and the schema makes it immutable: keep the object's
        # spelling.
        spec = encode_spec(changed) | {
            key: obj["spec"][key] for key in ("bucket", "path") if key in obj["spec"]
        }
        if spec == obj["spec"]:
            return decode(obj)
        meta = obj["metadata"]
        annotations = {
            key: value
            for key, value in (meta.get("annotations") or {}).items()
            if key != _LAST_APPLIED or changed.secret_ref is None
        }
        body = {
            **obj,
            "metadata": {
                **meta,
                "annotations": annotations,
                "labels": (meta.get("labels") or {}) | build_labels(changed),
            },
            "spec": spec,
        }
        return decode(self._server.call("PUT", _object_path(obj), {"fieldManager": DATA_CACHE_MANAGER}, body))

    def write_state(self, cache: DataCache, state: DataCacheState) -> None:
        obj = self._get_object(cache.name)
        if obj is None or obj["metadata"]["uid"] != cache.uid:
            return
        self._apply_status(obj, encode_status(cache, state, obj.get("status") or {}, time.time()))

    def write_malformed(self, name: str, message: str) -> None:
        if obj := self._get_object(name):
            self._apply_status(obj, encode_malformed_status(obj, message, time.time()))

    def _apply_status(self, obj: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        identity = {key: obj["metadata"][key] for key in ("name", "uid")}
        body = {**_type_meta(), "metadata": identity, "status": status}
        with suppress(NotFound):
            self._server.call(
                "PATCH",
                f"{_object_path(obj)}/status",
                {"fieldManager": DATA_CACHE_STATUS_MANAGER, "force": "true"},
                body,
                APPLY_PATCH,
            )

    def write_match_time(self, cache: DataCache, matched_at: float) -> None:
        # A merge patch by another field manager than write_state, so that neither removes the fields of the
        # other.
        patch = {"metadata": {"uid": cache.uid}, "status": {LAST_MATCHED_KEY: format_time(matched_at)}}
        with suppress(NotFound, ClusterConflict):
            self._server.call(
                "PATCH",
                api_path("apis", GROUP, VERSION, PLURAL, cache.name, "status"),
                {"fieldManager": DATA_CACHE_MANAGER},
                patch,
                MERGE_PATCH,
            )

    def delete(self, cache: DataCache) -> None:
        # The server deletes what the object owns with it.
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": cache.uid},
            "propagationPolicy": "Background",
        }
        with suppress(NotFound, ClusterConflict):
            self._server.call("DELETE", api_path("apis", GROUP, VERSION, PLURAL, cache.name), body=body)

    def read_credential(self, cache: DataCache) -> Mapping[str, str]:
        if cache.secret_ref is None:
            return {}
        namespace, name = cache.secret_ref.namespace or self._namespace, cache.secret_ref.name
        try:
            data = self._server.call("GET", self._secret_path(cache.secret_ref)).get("data") or {}
            return {key: base64.b64decode(value).decode() for key, value in data.items()}
        except NotFound:
            if (
                cache.secret_ref == self._owned_secret_ref(cache.name)
                and time.time() - cache.created_at < _CREATION_GRACE
            ):
                raise Busy(
                    f"the credential of the DataCache {cache.name} is being written; call again"
                ) from None
            raise FailedPrecondition(
                f"the Secret {namespace}/{name} of the DataCache {cache.name} does not exist; create it"
            ) from None
        except UnicodeDecodeError:
            raise FailedPrecondition(
                f"the Secret {namespace}/{name} has a value that is not text; "
                "store the credential as plain text"
            ) from None

    def is_credential_in_scope(self, cache: DataCache) -> bool:
        if cache.secret_ref is None:
            return True
        try:
            # Whatever the reference says: the Secret itself records that it was created for a DataCache.
            annotations = (
                self._server.call("GET", self._secret_path(cache.secret_ref))["metadata"].get("annotations")
                or {}
            )
        except NotFound:
            return True
        return annotations.get(CREDENTIAL_SCOPE_ANNOTATION, "") in ("", _credential_scope_hash(cache))

    def _secret_path(self, secret: SecretRef) -> str:
        return api_path(
            "api", "v1", "namespaces", secret.namespace or self._namespace, "secrets", secret.name
        )

    def _owned_secret_ref(self, name: str) -> SecretRef:
        return SecretRef(self._namespace, f"data-cache-{bucket_path_hash('', name)[:20]}")

    def _store_credential(self, cache: DataCache, secrets: Mapping[str, str]) -> None:
        if secrets and cache.secret_ref:
            self._write_secret(cache, cache.secret_ref, secrets)

    def _write_secret(self, cache: DataCache, secret: SecretRef, secrets: Mapping[str, str]) -> None:
        owner = {**_type_meta(), "name": cache.name, "uid": cache.uid, "controller": True}
        metadata = {
            "name": secret.name,
            "namespace": secret.namespace,
            "ownerReferences": [owner],
            "annotations": {CREDENTIAL_SCOPE_ANNOTATION: _credential_scope_hash(cache)},
        }
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in secrets.items()},
        }
        self._server.call(
            "PATCH",
            self._secret_path(secret),
            {"fieldManager": DATA_CACHE_MANAGER, "force": "true"},
            body,
            APPLY_PATCH,
        )

    @contextmanager
    def watch(self, on_change: Callable[[str, DataCache | None], None]) -> Iterator[None]:

        def on_object(name: str, obj: Mapping[str, Any] | None) -> None:
            cache = _decode_or_log(obj) if obj else None
            if cache and obj:
                (self._unlabelled.discard if _has_labels(obj, build_labels(cache)) else self._unlabelled.add)(
                    cache.uid
                )
            notify_watcher(lambda name: on_change(name, cache), name)

        with Watch(self._server, _DATA_CACHES_PATH, on_object, full_objects=True).run_in_background():
            yield


def _credential_scope_hash(cache: DataCache) -> str:
    """Return a hash of the source that a credential of the cache is for.

    It has 64 hex digits, and is "" for a malformed spec.
    """
    try:
        return hashlib.sha256(repr(cache.spec.credential_scope).encode()).hexdigest()
    except DataCacheError:
        return ""


def _has_labels(obj: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return labels.items() <= (obj["metadata"].get("labels") or {}).items()


def _build_object(cache: DataCache) -> dict[str, Any]:
    metadata = {"name": cache.name, "labels": build_labels(cache), "annotations": build_annotations(cache)}
    return {**_type_meta(), "metadata": metadata, "spec": encode_spec(cache)}


def _type_meta() -> dict[str, str]:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}


def _object_path(obj: Mapping[str, Any]) -> str:
    return api_path("apis", GROUP, VERSION, PLURAL, obj["metadata"]["name"])


def _decode_or_log(obj: Mapping[str, Any]) -> DataCache | None:
    try:
        return decode(obj)
    except DataCacheError as error:
        log.warning("unreadable DataCache skipped", extra={"fields": {"reason": error}})
        return None
