"""What the API server asks before it takes a pod or a DataCache, and what it is answered.

Source: Kubernetes documentation, "Dynamic Admission Control": AdmissionReview of admission.k8s.io/v1.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from controller_plugin.operator.data_cache_index import KnownCaches
from controller_plugin.operator.webhook.pod_volumes import PodVolumes
from csi.destinations.allow_list import AllowList
from csi.errors import ClusterUnavailable, DataCacheError, PermissionDenied
from csi.parameters.data_cache import split_secrets
from csi.registry.datacaches.codec import KIND, decode
from csi.registry.datacaches.data_caches import DataCache

log = logging.getLogger("datacache.admission")

_VERSION = "admission.k8s.io/v1"
_MATCH_SECONDS = 60.0
_FORBIDDEN, _UNPROCESSABLE, _FAILED, _UNAVAILABLE = 403, 422, 500, 503
# A dry run of an object that is to be has neither, and both are needed to read one.
_UNBORN = {"uid": "", "creationTimestamp": "1970-01-01T00:00:00Z"}


class Admission:
    """Answers reviews. `matched` is told of a cache that a pod asks for, now and then; it never waits. Thread-safe."""

    def __init__(self, known: KnownCaches, pods: PodVolumes, allowed: AllowList, matched: Callable[[DataCache, float], None]) -> None:
        self._known, self._pods, self._allowed, self._matched = known, pods, allowed, matched
        self._told: dict[str, float] = {}

    def pods(self, review: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a review of a pod: allowed with a patch, allowed as it is, or refused with a message. Raises KeyError for no review."""
        return _answered(review, self._pod)

    def data_caches(self, review: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a review of a DataCache that is made or changed: allowed, or refused with what is wrong. Raises KeyError for no review."""
        return _answered(review, self._data_cache)

    def _pod(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._pods.change(request["object"], request.get("namespace", ""))
        if not request.get("dryRun"):
            self._tell(found.caches)
        warned: dict[str, Any] = {"warnings": [_unmatched(found.left)]} if found.left else {}
        if not found.patch:
            return warned
        return {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(found.patch).encode()).decode(), **warned}

    def _tell(self, caches: tuple[DataCache, ...]) -> None:
        now = time.time()
        for cache in caches:
            if now - self._told.get(cache.uid, 0.0) > _MATCH_SECONDS:
                self._told[cache.uid] = now
                self._matched(cache, now)

    def _data_cache(self, request: Mapping[str, Any]) -> dict[str, Any]:
        thing = request["object"]
        old = request.get("oldObject")
        if old and old.get("spec") == thing.get("spec"):
            return {}
        cache = decode({**thing, "metadata": {"name": request.get("name", ""), **_UNBORN, **thing["metadata"]}})
        options, _ = split_secrets(cache.spec.options)
        plain = cache.spec.with_options(options)
        plain.check()
        if not plain.snapshot_id:
            self._allowed.check(plain.parameters())
        other = self._known.at(plain.bucket, plain.path)
        if other and other.name != cache.name:
            raise PermissionDenied(f"{plain.shown} is the name of the DataCache {other.name} already; take another path, or delete that one")
        return {}


def _answered(review: Mapping[str, Any], look: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    request = review["request"]
    try:
        response = {"allowed": True, **look(request)}
    except PermissionDenied as error:
        response = _refusal(_FORBIDDEN, str(error))
    except ClusterUnavailable as error:
        response = _refusal(_UNAVAILABLE, str(error))
    except DataCacheError as error:
        response = _refusal(_UNPROCESSABLE, str(error))
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        log.error(
            "an object was not looked at", extra={"fields": {"kind": request.get("kind", {}).get("kind", KIND), "reason": type(error).__name__}}
        )
        response = _refusal(_FAILED, "datacache-operator failed to look at this object; its log has the place")
    return {"apiVersion": _VERSION, "kind": "AdmissionReview", "response": {"uid": request["uid"], **response}}


def _unmatched(paths: tuple[str, ...]) -> str:
    return f"no DataCache of the annotated bucket holds {', '.join(paths)[:200]}: the pod gets the node's own folder"


def _refusal(code: int, message: str) -> dict[str, Any]:
    return {"allowed": False, "status": {"code": code, "message": message}}
