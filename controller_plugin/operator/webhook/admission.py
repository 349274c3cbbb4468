"""Admission reviews of pods and DataCaches for the API server.

Source: Kubernetes documentation, "Dynamic Admission Control": AdmissionReview of admission.k8s.io/v1.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from controller_plugin.operator.data_cache_index import DataCacheIndex
from controller_plugin.operator.webhook.pod_volumes import PodMutator
from csi.destinations.allow_list import AllowList
from csi.errors import ClusterUnavailable, DataCacheError, PermissionDenied
from csi.parameters.data_cache import split_secrets
from csi.registry.datacaches.codec import KIND, decode
from csi.registry.datacaches.data_caches import DataCache

log = logging.getLogger("datacache.admission")

_VERSION = "admission.k8s.io/v1"
_MATCH_INTERVAL = 60.0
_FORBIDDEN, _UNPROCESSABLE, _FAILED, _UNAVAILABLE = 403, 422, 500, 503
# A new object in a dry run lacks these fields, which decoding requires.
_DRY_RUN_METADATA = {"uid": "", "creationTimestamp": "1970-01-01T00:00:00Z"}


class AdmissionReviewer:
    """Reviewer of pods and DataCaches.

    `on_match` is called now and then for a cache that a pod uses; it must not wait. Thread-safe.
    """

    def __init__(
        self,
        index: DataCacheIndex,
        pods: PodMutator,
        allow_list: AllowList,
        on_match: Callable[[DataCache, float], None],
    ) -> None:
        self._index, self._pods, self._allow_list, self._on_match = index, pods, allow_list, on_match
        self._matched_at: dict[str, float] = {}

    def review_pod(self, review: Mapping[str, Any]) -> dict[str, Any]:
        """Review a pod: allow it, with a patch or unchanged, or deny it with a message.

        Raises KeyError for a malformed review.
        """
        return _respond(review, self._mutate_pod)

    def review_data_cache(self, review: Mapping[str, Any]) -> dict[str, Any]:
        """Review a new or changed DataCache: allow it, or deny it with the reason.

        Raises KeyError for a malformed review.
        """
        return _respond(review, self._validate_data_cache)

    def _mutate_pod(self, request: Mapping[str, Any]) -> dict[str, Any]:
        change = self._pods.mutate(request["object"], request.get("namespace", ""))
        if not request.get("dryRun"):
            self._report_matches(change.caches)
        warnings: dict[str, Any] = (
            {"warnings": [_unmatched_warning(change.unmatched_paths)]} if change.unmatched_paths else {}
        )
        if not change.patch:
            return warnings
        return {
            "patchType": "JSONPatch",
            "patch": base64.b64encode(json.dumps(change.patch).encode()).decode(),
            **warnings,
        }

    def _report_matches(self, caches: tuple[DataCache, ...]) -> None:
        now = time.time()
        for cache in caches:
            if now - self._matched_at.get(cache.uid, 0.0) > _MATCH_INTERVAL:
                self._matched_at[cache.uid] = now
                self._on_match(cache, now)

    def _validate_data_cache(self, request: Mapping[str, Any]) -> dict[str, Any]:
        obj = request["object"]
        # Objects stored before an operator's rules changed must stay editable (labels, status), so only
        # changed specs are checked.
        old = request.get("oldObject")
        if old and old.get("spec") == obj.get("spec"):
            return {}
        cache = decode(
            {**obj, "metadata": {"name": request.get("name", ""), **_DRY_RUN_METADATA, **obj["metadata"]}}
        )
        options, _ = split_secrets(cache.spec.options)
        public_spec = cache.spec.with_options(options)
        public_spec.check()
        if not public_spec.snapshot_id:
            self._allow_list.check(public_spec.to_volume_parameters())
        other = self._index.find_by_path(public_spec.bucket, public_spec.path)
        if other and other.name != cache.name:
            raise PermissionDenied(
                f"{public_spec.display_name} is the name of the DataCache {other.name} already; "
                "choose another path, or delete that one"
            )
        return {}


def _respond(
    review: Mapping[str, Any], review_object: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    request = review["request"]
    try:
        response = {"allowed": True, **review_object(request)}
    except PermissionDenied as error:
        response = _deny(_FORBIDDEN, str(error))
    except ClusterUnavailable as error:
        response = _deny(_UNAVAILABLE, str(error))
    except DataCacheError as error:
        response = _deny(_UNPROCESSABLE, str(error))
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        log.error(
            "admission review failed",
            extra={
                "fields": {"kind": request.get("kind", {}).get("kind", KIND), "reason": type(error).__name__}
            },
        )
        response = _deny(_FAILED, "datacache-operator failed to review this object; see its log")
    return {
        "apiVersion": _VERSION,
        "kind": "AdmissionReview",
        "response": {"uid": request["uid"], **response},
    }


def _unmatched_warning(paths: tuple[str, ...]) -> str:
    return (
        f"no DataCache of the annotated bucket holds {', '.join(paths)[:200]}: "
        "the pod gets the node's own folder"
    )


def _deny(code: int, message: str) -> dict[str, Any]:
    return {"allowed": False, "status": {"code": code, "message": message}}
