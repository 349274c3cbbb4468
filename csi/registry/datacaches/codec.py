"""A DataCache as an object: DataCache of eci.aliyun.com/v1alpha1 (deploy/crds/datacaches.yaml), and back. A directory keeps the same form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csi.errors import DataCacheError, InvalidParameter
from csi.parameters.data_cache import DataCacheSpec, data_cache, is_data_cache_id
from csi.registry.custom_resource import condition, read, written
from csi.registry.datacaches.data_caches import Content, DataCache, DataCacheState, Note, Phase, SecretRef, place_of

GROUP, VERSION, KIND, PLURAL = "eci.aliyun.com", "v1alpha1", "DataCache", "datacaches"
ID_LABEL, PLACE_LABEL = "datacache.csi.io/data-cache-id", "datacache.csi.io/data-cache-place"
TOKEN_ANNOTATION, ASKED_ANNOTATION = "datacache.csi.io/client-token", "datacache.csi.io/client-token-parameters"
ID_ANNOTATION = "datacache.csi.io/data-cache-id"
MATCHED = "lastMatchedTime"
_LONGEST_MESSAGE = 2048
_NETWORKS = ("vSwitchId", "securityGroupId")
_DONE = (Phase.AVAILABLE, Phase.UPDATING, Phase.UPDATE_FAILED)


def decode(thing: Mapping[str, Any]) -> DataCache:
    """The DataCache of an object; raises DataCacheError, naming it, where it cannot be read."""
    meta = thing["metadata"]
    try:
        given = thing["spec"]
        secret = given["dataSource"].get("secretRef")
        return DataCache(
            name=str(meta["name"]),
            uid=str(meta["uid"]),
            generation=int(meta.get("generation", 1)),
            created=read(meta["creationTimestamp"]),
            spec=_spec(given),
            state=_state(thing.get("status") or {}),
            secret=SecretRef(secret.get("namespace", ""), secret["name"]) if secret else None,
            title=given.get("name", ""),
            tags={tag["key"]: tag.get("value", "") for tag in given.get("tags") or ()},
            resource_group=given.get("resourceGroupId", ""),
            token=(meta.get("annotations") or {}).get(TOKEN_ANNOTATION, ""),
            asked=(meta.get("annotations") or {}).get(ASKED_ANNOTATION, ""),
            given_id=_given_id(meta),
        )
    except (KeyError, TypeError, ValueError, AttributeError, InvalidParameter) as error:
        raise DataCacheError(f"the DataCache {meta.get('name')} cannot be read ({error}); mend or delete it") from error


def _spec(given: Mapping[str, Any]) -> DataCacheSpec:
    source, net = given["dataSource"], given.get("netConfig") or {}
    return data_cache(
        given.get("bucket", ""),
        given["path"],
        source["type"],
        source.get("options") or {},
        size_gib=given.get("size"),
        retention_days=given.get("retentionDays"),
        networks=[net.get(kind) or given.get(kind) or "" for kind in _NETWORKS],
        namespaces=given.get("namespaces") or (),
        node_selector=given.get("nodeSelector"),
        refresh=given.get("refresh", ""),
    )


def encode_spec(cache: DataCache) -> dict[str, Any]:
    """`spec` of the object."""
    spec, secret = cache.spec, cache.secret
    source: dict[str, Any] = {"type": spec.type, "options": dict(spec.options)}
    if secret:
        source["secretRef"] = ({"namespace": secret.namespace} if secret.namespace else {}) | {"name": secret.name}
    found: dict[str, Any] = {"bucket": spec.bucket, "path": spec.path, "dataSource": source}
    optional = {
        "size": spec.size_gib,
        "retentionDays": spec.retention_days,
        "namespaces": list(spec.namespaces),
        "nodeSelector": dict(spec.node_selector),
        "refresh": spec.refresh,
        "netConfig": _net(spec.networks),
        "name": cache.title,
        "tags": [{"key": key, "value": value} for key, value in cache.tags.items()],
        "resourceGroupId": cache.resource_group,
    }
    return found | {key: value for key, value in optional.items() if value}


def _net(networks: Sequence[str]) -> dict[str, str]:
    return {kind: network for kind, network in zip(_NETWORKS, networks, strict=False) if network}


def annotations_of(cache: DataCache) -> dict[str, str]:
    """What an object is made with that no spec has."""
    given = {TOKEN_ANNOTATION: cache.token, ASKED_ANNOTATION: cache.asked, ID_ANNOTATION: cache.given_id}
    return {key: value for key, value in given.items() if value}


def digests_of(thing: Mapping[str, Any]) -> set[str]:
    """The digests of the images in an object's status, whatever else it has."""
    status = thing.get("status") or {}
    return {str(status[key]["manifestDigest"]) for key in ("content", "coming") if key in status}


def _given_id(meta: Mapping[str, Any]) -> str:
    given = str((meta.get("annotations") or {}).get(ID_ANNOTATION, ""))
    return given if is_data_cache_id(given) else ""


def labels_of(cache: DataCache) -> dict[str, str]:
    """The labels by which an object is found."""
    return {PLACE_LABEL: place_of(cache.spec.bucket, cache.spec.path)} | ({ID_LABEL: cache.id} if cache.uid or cache.given_id else {})


def encode_status(cache: DataCache, state: DataCacheState, old: Mapping[str, Any], now: float) -> dict[str, Any]:
    """`status` of the object in the state; `old` is the one that it has. `now` in seconds since 1970."""
    content = state.content or state.coming
    times = {"creationTime": cache.created, "expireDateTime": state.expires}
    shown: dict[str, Any] = {
        "dataCacheId": cache.id,
        "status": state.phase.value,
        "progress": f"{state.percent}%",
        "observedGeneration": state.generation,
        "message": state.message[:_LONGEST_MESSAGE],
        "snapshotId": content.snapshot_id if content else "",
        "size": cache.spec.capacity_gib(content.content_bytes) if content else cache.spec.size_gib,
        "content": _content(state.content),
        "coming": _content(state.coming),
        "inImageStore": state.is_kept or None,
        "events": [_note(note) for note in state.notes],
        **{key: written(seconds) for key, seconds in times.items() if seconds},
    }
    shown = {key: value for key, value in shown.items() if value not in (None, "", [])}
    return {**shown, "conditions": _conditions(state, (old.get("conditions") or []), now)}


def _conditions(state: DataCacheState, old: Sequence[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    usable = state.phase in _DONE
    said = state.message[:_LONGEST_MESSAGE] or f"it is {state.phase.value}, {state.percent}%"
    return [condition(old, "Available", "True" if usable else "False", state.phase.value, said, state.generation, now)]


def _content(content: Content | None) -> dict[str, Any] | None:
    if content is None:
        return None
    return {
        "manifestDigest": content.digest,
        "parameters": dict(content.access),
        "imageBytes": content.image_bytes,
        "contentBytes": content.content_bytes,
    }


def _note(note: Note) -> dict[str, Any]:
    times = {"firstTimestamp": written(note.first), "lastTimestamp": written(note.last)}
    return {"type": note.kind, "reason": note.reason, "message": note.message[:_LONGEST_MESSAGE], "count": note.count, **times}


def _state(status: Mapping[str, Any]) -> DataCacheState:
    return DataCacheState(
        phase=Phase(status.get("status", Phase.LOADING.value)),
        percent=int(status.get("progress", "0%").rstrip("%")),
        generation=int(status.get("observedGeneration", 0)),
        content=_read_content(status.get("content")),
        coming=_read_content(status.get("coming")),
        is_kept=bool(status.get("inImageStore")),
        message=status.get("message", ""),
        expires=_read_time(status.get("expireDateTime")),
        matched=_read_time(status.get(MATCHED)),
        notes=tuple(map(_read_note, status.get("events") or ())),
    )


def _read_content(kept: Mapping[str, Any] | None) -> Content | None:
    return Content(kept["manifestDigest"], kept["parameters"], kept["imageBytes"], kept["contentBytes"]) if kept else None


def _read_note(kept: Mapping[str, Any]) -> Note:
    return Note(kept["type"], kept["reason"], kept["message"], kept["count"], read(kept["firstTimestamp"]), read(kept["lastTimestamp"]))


def _read_time(text: str | None) -> float:
    return read(text) if text else 0.0
