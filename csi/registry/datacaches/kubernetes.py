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

from csi.cluster.api_server import APPLY, MERGE, ApiServer, path_of
from csi.cluster.watch import Watch, pages
from csi.errors import AlreadyExists, Busy, ClusterConflict, DataCacheError, FailedPrecondition, NotFound
from csi.parameters.data_cache import is_data_cache_id
from csi.registry.custom_resource import written
from csi.registry.datacaches.codec import (
    GROUP,
    ID_LABEL,
    KIND,
    MATCHED,
    PLACE_LABEL,
    PLURAL,
    VERSION,
    annotations_of,
    decode,
    digests_of,
    encode_spec,
    encode_status,
    labels_of,
)
from csi.registry.datacaches.data_caches import DataCache, DataCacheState, SecretRef, first_at, place_of
from csi.registry.notify import tell

log = logging.getLogger("datacache.registry")

FOR_ANNOTATION = "datacache.csi.io/credential-for"
"""On a Secret that was made for a DataCache: what it was given for."""
MANAGER, STATUS_MANAGER = "datacache-operator", "datacache-operator-status"
_ALL = path_of("apis", GROUP, VERSION, PLURAL)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_TRIES = 8
_MANY = 500
# The API makes the object first, which owns the Secret.
_BORN_SECONDS = 60.0


class KubernetesDataCaches:
    """See DataCaches. Credentials become Secrets of `namespace`, each owned by its DataCache."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self._namespace = server, namespace
        self._unlabelled: set[str] = set()

    def find(self, ids: tuple[str, ...] = (), bucket: str = "", path: str = "") -> list[DataCache]:
        """See DataCaches; those that the operator has not looked at yet are found by neither id nor place."""
        if ids and not (ids := tuple(filter(is_data_cache_id, ids))):
            return []
        selector = f"{ID_LABEL} in ({','.join(ids)})" if ids else f"{PLACE_LABEL}={place_of(bucket, path)}" if bucket and path else ""
        found = [cache for page in pages(self._server, _ALL, selector, _MANY) for thing in page["items"] if (cache := _readable(thing))]
        fitting = [one for one in found if bucket in ("", one.spec.bucket) and path in ("", one.spec.path) and (not ids or one.id in ids)]
        return sorted(fitting, key=lambda one: (one.created, one.uid))

    def named(self, name: str) -> DataCache | None:
        """See DataCaches; raises DataCacheError where the object cannot be read."""
        thing = self._object(name)
        return decode(thing) if thing else None

    def _object(self, name: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", path_of("apis", GROUP, VERSION, PLURAL, name))
        except NotFound:
            return None

    def add(self, cache: DataCache, secrets: Mapping[str, str]) -> DataCache:
        """See DataCaches."""
        taken = AlreadyExists(f"there is a DataCache of {cache.spec.shown} already; update or delete that, or take another path")
        if first_at(self.find(bucket=cache.spec.bucket, path=cache.spec.path), cache.spec.bucket, cache.spec.path):
            raise taken
        name = f"edc-{place_of(cache.spec.bucket, cache.spec.path)}"
        wanted = replace(cache, name=name, secret=self._own_secret(name) if secrets else cache.secret)
        try:
            thing = self._server.call("POST", _ALL, {"fieldManager": MANAGER}, _object_of(wanted))
        except ClusterConflict:
            raise taken from None
        self._keep(decode(thing), secrets)
        return decode(self._labelled(thing))

    def _labelled(self, thing: dict[str, Any]) -> dict[str, Any]:
        """The object with the labels that it is found by; the id's needs the uid, which the server gives."""
        labels = labels_of(decode(thing))
        if _has(thing, labels):
            return thing
        patch = {"metadata": {"uid": thing["metadata"]["uid"], "labels": labels}}
        return self._server.call("PATCH", _path(thing), {"fieldManager": MANAGER}, patch, MERGE)

    def label(self, cache: DataCache) -> None:
        """See DataCaches."""
        if cache.uid not in self._unlabelled:
            return
        thing = self._object(cache.name)
        if thing and thing["metadata"]["uid"] == cache.uid:
            self._labelled(thing)
        self._unlabelled.discard(cache.uid)

    def change(self, cache: DataCache, how: Callable[[DataCache], DataCache], secrets: Mapping[str, str] | None = None) -> DataCache | None:
        """See DataCaches."""
        for _ in range(_TRIES):
            thing = self._object(cache.name)
            if thing is None or thing["metadata"]["uid"] != cache.uid:
                return None
            now = decode(thing)
            changed = how(replace(now, secret=self._own_secret(now.name)) if secrets else now)
            # A credential that is in the object still goes from there once it is in the Secret.
            self._keep(changed, secrets or {})
            with suppress(ClusterConflict):
                put = self._written(thing, changed)
                if changed.secret is None and now.secret == self._own_secret(now.name):
                    self._write_secret(now, now.secret, {})
                return put
        raise ClusterConflict(f"the DataCache {cache.name} changes all the time; the call is tried again")

    def digests(self) -> set[str]:
        """See DataCaches."""
        return {digest for page in pages(self._server, _ALL, "", _MANY) for thing in page["items"] for digest in digests_of(thing)}

    def _written(self, thing: dict[str, Any], changed: DataCache) -> DataCache:
        """Replace the spec of this very version; what kubectl remembers of it may hold a credential, and goes with one."""
        # A place may be written in several ways, and the schema lets no other take its place.
        spec = encode_spec(changed) | {key: thing["spec"][key] for key in ("bucket", "path") if key in thing["spec"]}
        if spec == thing["spec"]:
            return decode(thing)
        meta = thing["metadata"]
        annotations = {key: value for key, value in (meta.get("annotations") or {}).items() if key != _LAST_APPLIED or changed.secret is None}
        body = {**thing, "metadata": {**meta, "annotations": annotations, "labels": (meta.get("labels") or {}) | labels_of(changed)}, "spec": spec}
        return decode(self._server.call("PUT", _path(thing), {"fieldManager": MANAGER}, body))

    def report(self, cache: DataCache, state: DataCacheState) -> None:
        """See DataCaches."""
        thing = self._object(cache.name)
        if thing is None or thing["metadata"]["uid"] != cache.uid:
            return
        said = encode_status(cache, state, thing.get("status") or {}, time.time())
        body = {**_kind(), "metadata": {"name": cache.name, "uid": cache.uid}, "status": said}
        with suppress(NotFound):
            self._server.call("PATCH", f"{_path(thing)}/status", {"fieldManager": STATUS_MANAGER, "force": "true"}, body, APPLY)

    def note_match(self, cache: DataCache, when: float) -> None:
        """See DataCaches."""
        patch = {"metadata": {"uid": cache.uid}, "status": {MATCHED: written(when)}}
        with suppress(NotFound, ClusterConflict):
            self._server.call("PATCH", path_of("apis", GROUP, VERSION, PLURAL, cache.name, "status"), {"fieldManager": MANAGER}, patch, MERGE)

    def delete(self, cache: DataCache) -> None:
        """See DataCaches; what the object owns goes with it."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": cache.uid}, "propagationPolicy": "Background"}
        with suppress(NotFound, ClusterConflict):
            self._server.call("DELETE", path_of("apis", GROUP, VERSION, PLURAL, cache.name), body=body)

    def credential(self, cache: DataCache) -> Mapping[str, str]:
        """See DataCaches."""
        if cache.secret is None:
            return {}
        namespace, name = cache.secret.namespace or self._namespace, cache.secret.name
        try:
            data = self._server.call("GET", self._secret_path(cache.secret)).get("data") or {}
            return {key: base64.b64decode(value).decode() for key, value in data.items()}
        except NotFound:
            if cache.secret == self._own_secret(cache.name) and time.time() - cache.created < _BORN_SECONDS:
                raise Busy(f"the credential of the DataCache {cache.name} is being written") from None
            raise FailedPrecondition(f"the Secret {namespace}/{name} of the DataCache {cache.name} is not there; make it") from None
        except UnicodeDecodeError:
            raise FailedPrecondition(f"the Secret {namespace}/{name} has a value that is no text; put the credential there as it is") from None

    def credential_fits(self, cache: DataCache) -> bool:
        """See DataCaches."""
        if cache.secret is None:
            return True
        try:
            # By whatever reference: the Secret itself says that it was made for a DataCache.
            annotations = self._server.call("GET", self._secret_path(cache.secret))["metadata"].get("annotations") or {}
        except NotFound:
            return True
        return annotations.get(FOR_ANNOTATION, "") in ("", _for(cache))

    def _secret_path(self, secret: SecretRef) -> str:
        return path_of("api", "v1", "namespaces", secret.namespace or self._namespace, "secrets", secret.name)

    def _own_secret(self, name: str) -> SecretRef:
        return SecretRef(self._namespace, f"data-cache-{place_of('', name)[:20]}")

    def _keep(self, cache: DataCache, secrets: Mapping[str, str]) -> None:
        if secrets and cache.secret:
            self._write_secret(cache, cache.secret, secrets)

    def _write_secret(self, cache: DataCache, secret: SecretRef, secrets: Mapping[str, str]) -> None:
        owner = {**_kind(), "name": cache.name, "uid": cache.uid, "controller": True}
        about = {"name": secret.name, "namespace": secret.namespace, "ownerReferences": [owner], "annotations": {FOR_ANNOTATION: _for(cache)}}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": about,
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in secrets.items()},
        }
        self._server.call("PATCH", self._secret_path(secret), {"fieldManager": MANAGER, "force": "true"}, body, APPLY)

    @contextmanager
    def watch(self, told: Callable[[str, DataCache | None], None]) -> Iterator[None]:
        """See DataCaches."""

        def heard(name: str, thing: Mapping[str, Any] | None) -> None:
            cache = _readable(thing) if thing else None
            if cache and thing:
                (self._unlabelled.discard if _has(thing, labels_of(cache)) else self._unlabelled.add)(cache.uid)
            if cache or thing is None:
                tell(lambda name: told(name, cache), name)

        with Watch(self._server, _ALL, heard, metadata=False, everything=True).running():
            yield


def _for(cache: DataCache) -> str:
    """What a credential of the cache is for, as 64 hex digits; "" where its spec cannot be read."""
    try:
        return hashlib.sha256(repr(cache.spec.credential_for).encode()).hexdigest()
    except DataCacheError:
        return ""


def _has(thing: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return labels.items() <= (thing["metadata"].get("labels") or {}).items()


def _object_of(cache: DataCache) -> dict[str, Any]:
    about = {"name": cache.name, "labels": labels_of(cache), "annotations": annotations_of(cache)}
    return {**_kind(), "metadata": about, "spec": encode_spec(cache)}


def _kind() -> dict[str, str]:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}


def _path(thing: Mapping[str, Any]) -> str:
    return path_of("apis", GROUP, VERSION, PLURAL, thing["metadata"]["name"])


def _readable(thing: Mapping[str, Any]) -> DataCache | None:
    try:
        return decode(thing)
    except DataCacheError as error:
        log.warning("a DataCache is left out", extra={"fields": {"reason": error}})
        return None
