"""DataCaches as objects of the cluster: what people, the API and the operator write, and nodes and the pod webhook read."""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from csi.cluster.api_server import APPLY_PATCH, MERGE_PATCH, ApiServer, api_path
from csi.cluster.watch import Watch, list_pages
from csi.errors import AlreadyExists, Busy, ClusterConflict, DataCacheError, FailedPrecondition, NotFound
from csi.parameters.data_cache import is_data_cache_id
from csi.registry.custom_resource import format_time
from csi.registry.datacaches.codec import (
    BUCKET_PATH_LABEL,
    GROUP,
    ID_LABEL,
    KIND,
    MATCHED_KEY,
    PLURAL,
    VERSION,
    build_annotations,
    build_labels,
    decode,
    encode_spec,
    encode_status,
    list_digests,
)
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheState,
    SecretRef,
    bucket_path_hash,
    find_oldest_at,
)
from csi.registry.notify import notify_watcher

log = logging.getLogger("datacache.registry")

CREDENTIAL_SCOPE_ANNOTATION = "datacache.csi.io/credential-for"
"""On a Secret that was made for a DataCache: what it was given for."""
DATA_CACHE_MANAGER, DATA_CACHE_STATUS_MANAGER = "datacache-operator", "datacache-operator-status"
_DATA_CACHES_PATH = api_path("apis", GROUP, VERSION, PLURAL)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_MAX_TRIES = 8
_PAGE_SIZE = 500
# The API makes the object first, which owns the Secret.
_CREATION_GRACE = 60.0


class KubernetesDataCacheRegistry:
    """See DataCaches. Credentials become Secrets of `namespace`, each owned by its DataCache."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self._namespace = server, namespace
        self._unlabelled: set[str] = set()

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        """See DataCaches; those that the operator has not looked at yet are found by neither id nor place."""
        if ids and not (ids := tuple(filter(is_data_cache_id, ids))):
            return []
        selector = (
            f"{ID_LABEL} in ({','.join(ids)})"
            if ids
            else f"{BUCKET_PATH_LABEL}={bucket_path_hash(bucket, path)}"
            if bucket and path
            else ""
        )
        found = [
            cache
            for page in list_pages(self._server, _DATA_CACHES_PATH, selector, _PAGE_SIZE)
            for obj in page["items"]
            if (cache := _decode_or_log(obj))
        ]
        matching = [
            one
            for one in found
            if bucket in ("", one.spec.bucket) and path in ("", one.spec.path) and (not ids or one.id in ids)
        ]
        return sorted(matching, key=lambda one: (one.created_at, one.uid))

    def get(self, name: str) -> DataCache | None:
        """See DataCaches; raises DataCacheError where the object cannot be read."""
        obj = self._get_object(name)
        return decode(obj) if obj else None

    def _get_object(self, name: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", api_path("apis", GROUP, VERSION, PLURAL, name))
        except NotFound:
            return None

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        """See DataCaches."""
        taken = AlreadyExists(
            f"there is a DataCache of {cache.spec.display_name} already; update or delete that, or take another path"
        )
        if find_oldest_at(
            self.find(bucket=cache.spec.bucket, path=cache.spec.path), cache.spec.bucket, cache.spec.path
        ):
            raise taken
        name = f"edc-{bucket_path_hash(cache.spec.bucket, cache.spec.path)}"
        wanted = replace(
            cache, name=name, secret_ref=self._owned_secret_ref(name) if secrets else cache.secret_ref
        )
        try:
            obj = self._server.call(
                "POST", _DATA_CACHES_PATH, {"fieldManager": DATA_CACHE_MANAGER}, _build_object(wanted)
            )
        except ClusterConflict:
            raise taken from None
        self._store_credential(decode(obj), secrets)
        return decode(self._ensure_labels(obj))

    def _ensure_labels(self, obj: dict[str, Any]) -> dict[str, Any]:
        """The object with the labels that it is found by; the id's needs the uid, which the server gives."""
        labels = build_labels(decode(obj))
        if _has_labels(obj, labels):
            return obj
        patch = {"metadata": {"uid": obj["metadata"]["uid"], "labels": labels}}
        return self._server.call(
            "PATCH", _object_path(obj), {"fieldManager": DATA_CACHE_MANAGER}, patch, MERGE_PATCH
        )

    def apply_labels(self, cache: DataCache) -> None:
        """See DataCaches."""
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
        """See DataCaches."""
        for _ in range(_MAX_TRIES):
            obj = self._get_object(cache.name)
            if obj is None or obj["metadata"]["uid"] != cache.uid:
                return None
            current = decode(obj)
            changed = update(
                replace(current, secret_ref=self._owned_secret_ref(current.name)) if secrets else current
            )
            # A credential that is in the object still goes from there once it is in the Secret.
            self._store_credential(changed, secrets or {})
            with suppress(ClusterConflict):
                written = self._replace_spec(obj, changed)
                if changed.secret_ref is None and current.secret_ref == self._owned_secret_ref(current.name):
                    self._write_secret(current, current.secret_ref, {})
                return written
        raise ClusterConflict(f"the DataCache {cache.name} changes all the time; the call is tried again")

    def list_digests(self) -> set[str]:
        """See DataCaches."""
        return {
            digest
            for page in list_pages(self._server, _DATA_CACHES_PATH, "", _PAGE_SIZE)
            for thing in page["items"]
            for digest in list_digests(thing)
        }

    def _replace_spec(self, obj: dict[str, Any], changed: DataCache) -> DataCache:
        """Replace the spec of this very version; what kubectl remembers of it may hold a credential, and goes with one."""
        # A place may be written in several ways, and the schema lets no other take its place.
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
        """See DataCaches."""
        obj = self._get_object(cache.name)
        if obj is None or obj["metadata"]["uid"] != cache.uid:
            return
        status = encode_status(cache, state, obj.get("status") or {}, time.time())
        body = {**_type_meta(), "metadata": {"name": cache.name, "uid": cache.uid}, "status": status}
        with suppress(NotFound):
            self._server.call(
                "PATCH",
                f"{_object_path(obj)}/status",
                {"fieldManager": DATA_CACHE_STATUS_MANAGER, "force": "true"},
                body,
                APPLY_PATCH,
            )

    def write_match_time(self, cache: DataCache, matched_at: float) -> None:
        """See DataCaches."""
        patch = {"metadata": {"uid": cache.uid}, "status": {MATCHED_KEY: format_time(matched_at)}}
        with suppress(NotFound, ClusterConflict):
            self._server.call(
                "PATCH",
                api_path("apis", GROUP, VERSION, PLURAL, cache.name, "status"),
                {"fieldManager": DATA_CACHE_MANAGER},
                patch,
                MERGE_PATCH,
            )

    def delete(self, cache: DataCache) -> None:
        """See DataCaches; what the object owns goes with it."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": cache.uid},
            "propagationPolicy": "Background",
        }
        with suppress(NotFound, ClusterConflict):
            self._server.call("DELETE", api_path("apis", GROUP, VERSION, PLURAL, cache.name), body=body)

    def read_credential(self, cache: DataCache) -> Mapping[str, str]:
        """See DataCaches."""
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
                raise Busy(f"the credential of the DataCache {cache.name} is being written") from None
            raise FailedPrecondition(
                f"the Secret {namespace}/{name} of the DataCache {cache.name} is not there; make it"
            ) from None
        except UnicodeDecodeError:
            raise FailedPrecondition(
                f"the Secret {namespace}/{name} has a value that is no text; put the credential there as it is"
            ) from None

    def is_credential_in_scope(self, cache: DataCache) -> bool:
        """See DataCaches."""
        if cache.secret_ref is None:
            return True
        try:
            # By whatever reference: the Secret itself says that it was made for a DataCache.
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
        about = {
            "name": secret.name,
            "namespace": secret.namespace,
            "ownerReferences": [owner],
            "annotations": {CREDENTIAL_SCOPE_ANNOTATION: _credential_scope_hash(cache)},
        }
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": about,
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
        """See DataCaches."""

        def on_object(name: str, thing: Mapping[str, Any] | None) -> None:
            cache = _decode_or_log(thing) if thing else None
            if cache and thing:
                (
                    self._unlabelled.discard
                    if _has_labels(thing, build_labels(cache))
                    else self._unlabelled.add
                )(cache.uid)
            if cache or thing is None:
                notify_watcher(lambda name: on_change(name, cache), name)

        with Watch(
            self._server, _DATA_CACHES_PATH, on_object, metadata_only=False, report_initial=True
        ).run_in_background():
            yield


def _credential_scope_hash(cache: DataCache) -> str:
    """What a credential of the cache is for, as 64 hex digits; "" where its spec cannot be read."""
    try:
        return hashlib.sha256(repr(cache.spec.credential_scope).encode()).hexdigest()
    except DataCacheError:
        return ""


def _has_labels(obj: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return labels.items() <= (obj["metadata"].get("labels") or {}).items()


def _build_object(cache: DataCache) -> dict[str, Any]:
    about = {"name": cache.name, "labels": build_labels(cache), "annotations": build_annotations(cache)}
    return {**_type_meta(), "metadata": about, "spec": encode_spec(cache)}


def _type_meta() -> dict[str, str]:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}


def _object_path(obj: Mapping[str, Any]) -> str:
    return api_path("apis", GROUP, VERSION, PLURAL, obj["metadata"]["name"])


def _decode_or_log(obj: Mapping[str, Any]) -> DataCache | None:
    try:
        return decode(obj)
    except DataCacheError as error:
        log.warning("a DataCache is left out", extra={"fields": {"reason": error}})
        return None
