"""Conversion of a DataCache to and from its object.

The object is a DataCache of eci.aliyun.com/v1alpha1 (deploy/crds/datacaches.yaml). The directory registry
stores the same form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csi.errors import InvalidParameter
from csi.parameters.data_cache import DataCacheSpec, is_data_cache_id, parse_data_cache
from csi.registry.custom_resource import build_condition, format_time, parse_time
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheContent,
    DataCacheEvent,
    DataCacheState,
    MalformedDataCache,
    Phase,
    SecretRef,
    bucket_path_hash,
    data_cache_id_from_uid,
)

GROUP, VERSION, KIND, PLURAL = "eci.aliyun.com", "v1alpha1", "DataCache", "datacaches"
ID_LABEL, BUCKET_PATH_LABEL = "datacache.csi.io/data-cache-id", "datacache.csi.io/data-cache-place"
CLIENT_TOKEN_ANNOTATION, REQUEST_HASH_ANNOTATION = (
    "datacache.csi.io/client-token",
    "datacache.csi.io/client-token-parameters",
)
DATA_CACHE_ID_ANNOTATION = "datacache.csi.io/data-cache-id"
LAST_MATCHED_KEY = "lastMatchedTime"
_MAX_MESSAGE = 2048
_NETWORKS = ("vSwitchId", "securityGroupId")
_CONTENT_KEYS = ("dataCacheId", "snapshotId", "size", "content", "coming", "inImageStore", "creationTime")
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
_USABLE_PHASES = (Phase.AVAILABLE, Phase.UPDATING, Phase.UPDATE_FAILED)


def decode(obj: Mapping[str, Any]) -> DataCache:
    """Decode a DataCache from its object; raises MalformedDataCache, naming object and field."""
    meta = obj["metadata"]
    try:
        spec = obj["spec"]
        secret = spec["dataSource"].get("secretRef")
        parsed = _decode_spec(spec)
        annotations = _list_own_annotations(meta, parsed)
        return DataCache(
            name=str(meta["name"]),
            uid=str(meta["uid"]),
            generation=int(meta.get("generation", 1)),
            created_at=parse_time(meta["creationTimestamp"]),
            spec=parsed,
            state=_decode_state_or_explain(obj.get("status") or {}),
            secret_ref=SecretRef(secret.get("namespace", ""), secret["name"]) if secret else None,
            title=spec.get("name", ""),
            tags={tag["key"]: tag.get("value", "") for tag in spec.get("tags") or ()},
            resource_group=spec.get("resourceGroupId", ""),
            client_token=annotations.get(CLIENT_TOKEN_ANNOTATION, ""),
            request_hash=annotations.get(REQUEST_HASH_ANNOTATION, ""),
            assigned_id=_decode_assigned_id(annotations),
        )
    except (*_MALFORMED, InvalidParameter) as error:
        raise MalformedDataCache(
            f"the DataCache {meta.get('name')} cannot be read ({_explain(error)}); correct or delete it"
        ) from error


def _explain(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _decode_state_or_explain(status: Mapping[str, Any]) -> DataCacheState:
    try:
        return _decode_state(status)
    except _MALFORMED as error:
        # The errors of Python's own parsers name no field.
        raise InvalidParameter(f"status: {_explain(error)}") from error


def _decode_spec(spec: Mapping[str, Any]) -> DataCacheSpec:
    source, net = spec["dataSource"], spec.get("netConfig") or {}
    return parse_data_cache(
        spec.get("bucket", ""),
        spec["path"],
        source["type"],
        source.get("options") or {},
        size_gib=spec.get("size"),
        retention_days=spec.get("retentionDays"),
        networks=[net.get(kind) or spec.get(kind) or "" for kind in _NETWORKS],
        namespaces=spec.get("namespaces") or (),
        node_selector=spec.get("nodeSelector"),
        refresh=spec.get("refresh", ""),
    )


def encode_spec(cache: DataCache) -> dict[str, Any]:
    """Encode `spec` of the object."""
    spec, secret = cache.spec, cache.secret_ref
    source: dict[str, Any] = {"type": spec.type, "options": dict(spec.options)}
    if secret:
        source["secretRef"] = ({"namespace": secret.namespace} if secret.namespace else {}) | {
            "name": secret.name
        }
    encoded: dict[str, Any] = {"bucket": spec.bucket, "path": spec.path, "dataSource": source}
    optional = {
        "size": spec.size_gib,
        "retentionDays": spec.retention_days,
        "namespaces": list(spec.namespaces),
        "nodeSelector": dict(spec.node_selector),
        "refresh": spec.refresh,
        "netConfig": _encode_networks(spec.networks),
        "name": cache.title,
        "tags": [{"key": key, "value": value} for key, value in cache.tags.items()],
        "resourceGroupId": cache.resource_group,
    }
    return encoded | {key: value for key, value in optional.items() if value}


def _encode_networks(networks: Sequence[str]) -> dict[str, str]:
    return {kind: network for kind, network in zip(_NETWORKS, networks, strict=False) if network}


def build_annotations(cache: DataCache) -> dict[str, str]:
    """Build the annotations of a new object, for data that has no place in the spec."""
    values = {
        CLIENT_TOKEN_ANNOTATION: cache.client_token,
        REQUEST_HASH_ANNOTATION: cache.request_hash,
        DATA_CACHE_ID_ANNOTATION: cache.assigned_id,
    }
    return {key: value for key, value in values.items() if value}


def list_digests(obj: Mapping[str, Any]) -> set[str]:
    """Return the digests of the images in an object's status, even if the rest cannot be read."""
    status = obj.get("status") or {}
    return {str(status[key]["manifestDigest"]) for key in ("content", "coming") if key in status}


def created_name(bucket: str, path: str) -> str:
    """Return the name that the API gives to the object of a bucket and path."""
    return f"edc-{bucket_path_hash(bucket, path)}"


def _list_own_annotations(meta: Mapping[str, Any], spec: DataCacheSpec) -> Mapping[str, str]:
    """Return the annotations, none for an object that somebody made of another's manifest.

    Id and token belong to the object that they were given with: two with one id could not be told apart.
    """
    annotations: Mapping[str, str] = meta.get("annotations") or {}
    # A folder names its records after their ids, a cluster after bucket and path, which never change.
    own_names = (
        created_name(spec.bucket, spec.path),
        data_cache_id_from_uid(str(meta["uid"])),
        annotations.get(DATA_CACHE_ID_ANNOTATION),
    )
    return annotations if meta["name"] in own_names else {}


def _decode_assigned_id(annotations: Mapping[str, str]) -> str:
    assigned_id = str(annotations.get(DATA_CACHE_ID_ANNOTATION, ""))
    return assigned_id if is_data_cache_id(assigned_id) else ""


def build_labels(cache: DataCache) -> dict[str, str]:
    """Build the labels by which an object is found."""
    return {BUCKET_PATH_LABEL: bucket_path_hash(cache.spec.bucket, cache.spec.path)} | (
        {ID_LABEL: cache.id} if cache.uid or cache.assigned_id else {}
    )


def encode_status(
    cache: DataCache, state: DataCacheState, old: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Encode `state` as the object's `status`; `old` is its current status.

    `now` is in seconds since 1970.
    """
    content = state.content or state.next_content
    times = {"creationTime": cache.created_at, "expireDateTime": state.expires_at}
    encoded: dict[str, Any] = {
        "dataCacheId": cache.id,
        "status": state.phase.value,
        "progress": f"{state.percent}%",
        "observedGeneration": state.generation,
        "message": state.message[:_MAX_MESSAGE],
        "snapshotId": content.snapshot_id if content else "",
        "size": cache.spec.capacity_gib(content.content_bytes) if content else cache.spec.size_gib,
        "content": _encode_content(state.content),
        "coming": _encode_content(state.next_content),
        "inImageStore": state.in_image_store or None,
        "events": [_encode_event(event) for event in state.events],
        **{key: format_time(seconds) for key, seconds in times.items() if seconds},
    }
    encoded = {key: value for key, value in encoded.items() if value not in (None, "", [])}
    return {**encoded, "conditions": _build_conditions(state, (old.get("conditions") or []), now)}


def encode_malformed_status(obj: Mapping[str, Any], message: str, now: float) -> dict[str, Any]:
    """Encode the `status` of an object that cannot be decoded: Failed, with the contents that it had.

    `now` is in seconds since 1970.
    """
    old = obj.get("status") or {}
    # Whatever else is there may be what cannot be decoded.
    kept = {key: old[key] for key in _CONTENT_KEYS if key in old}
    generation = int(obj["metadata"].get("generation", 1))
    state = DataCacheState(Phase.FAILED, generation=generation, message=message)
    return {
        **kept,
        "status": state.phase.value,
        "progress": f"{state.percent}%",
        # No generation is resolved by this: what is kept of `coming` may belong to an earlier one, and must
        # not be taken for the content of this spec once it can be decoded.
        "observedGeneration": 0,
        "message": message[:_MAX_MESSAGE],
        "conditions": _build_conditions(state, old.get("conditions") or [], now),
    }


def _build_conditions(
    state: DataCacheState, old: Sequence[Mapping[str, Any]], now: float
) -> list[dict[str, Any]]:
    usable = state.phase in _USABLE_PHASES
    message = state.message[:_MAX_MESSAGE] or f"it is {state.phase.value}, {state.percent}%"
    return [
        build_condition(
            old, "Available", "True" if usable else "False", state.phase.value, message, state.generation, now
        )
    ]


def _encode_content(content: DataCacheContent | None) -> dict[str, Any] | None:
    if content is None:
        return None
    return {
        "manifestDigest": content.digest,
        "parameters": dict(content.access),
        "imageBytes": content.image_bytes,
        "contentBytes": content.content_bytes,
    }


def _encode_event(event: DataCacheEvent) -> dict[str, Any]:
    times = {"firstTimestamp": format_time(event.first), "lastTimestamp": format_time(event.last)}
    return {
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_MAX_MESSAGE],
        "count": event.count,
        **times,
    }


def _decode_state(status: Mapping[str, Any]) -> DataCacheState:
    return DataCacheState(
        phase=Phase(status.get("status", Phase.LOADING.value)),
        percent=int(status.get("progress", "0%").rstrip("%")),
        generation=int(status.get("observedGeneration", 0)),
        content=_decode_content(status.get("content")),
        next_content=_decode_content(status.get("coming")),
        in_image_store=bool(status.get("inImageStore")),
        message=status.get("message", ""),
        expires_at=_decode_time(status.get("expireDateTime")),
        last_matched_at=_decode_time(status.get(LAST_MATCHED_KEY)),
        events=tuple(map(_decode_event, status.get("events") or ())),
    )


def _decode_content(stored: Mapping[str, Any] | None) -> DataCacheContent | None:
    return (
        DataCacheContent(
            stored["manifestDigest"], stored["parameters"], stored["imageBytes"], stored["contentBytes"]
        )
        if stored
        else None
    )


def _decode_event(stored: Mapping[str, Any]) -> DataCacheEvent:
    return DataCacheEvent(
        stored["type"],
        stored["reason"],
        stored["message"],
        stored["count"],
        parse_time(stored["firstTimestamp"]),
        parse_time(stored["lastTimestamp"]),
    )


def _decode_time(text: str | None) -> float:
    return parse_time(text) if text else 0.0
