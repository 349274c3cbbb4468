"""A volume as an object of the cluster: CacheVolume of datacache.csi.io/v1alpha1 (deploy/crds/cachevolumes.yaml), and back."""

from __future__ import annotations

import calendar
import hashlib
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from csi.errors import DataCacheError, InvalidParameter
from csi.parameters.performance_keys import Performance
from csi.parameters.pvc import Claim
from csi.parameters.volume_parameters import parse_kept
from csi.registry.custom_resource import GROUP, condition, kind_of, source_in_words
from csi.registry.volumes.record import VolumeRecord

KIND, PLURAL = "CacheVolume", "cachevolumes"
VOLUME_LABEL, ID_ANNOTATION = f"{GROUP}/volume", f"{GROUP}/volume-id"
# A DNS subdomain (RFC 1123), as names of objects are.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_HASHED = "hashed-"
_CREATED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z", re.ASCII)


def object_name(volume_id: str) -> str:
    """The name of a volume's object: its id where that can be a name, else "hashed-" and the SHA-256 of it."""
    if len(volume_id) <= 253 and _NAME.fullmatch(volume_id) and not volume_id.startswith(_HASHED):
        return volume_id
    return _HASHED + _sha256(volume_id)


def label_value(volume_id: str) -> str:
    """What the volume's label says: 16 hex digits, so that a selector of hundreds of volumes fits into a URL."""
    return _sha256(volume_id)[:16]


def id_of(thing: Mapping[str, Any]) -> str:
    """The volume id of an object of which the metadata alone is known."""
    meta = thing["metadata"]
    return str(meta.get("annotations", {}).get(ID_ANNOTATION, meta["name"]))


def encode(record: VolumeRecord) -> dict[str, Any]:
    """The object, as it is applied."""
    name = object_name(record.id)
    annotations = {} if name == record.id else {"annotations": {ID_ANNOTATION: record.id}}
    spec: dict[str, Any] = {
        "volumeID": record.id,
        "name": record.name,
        "created": _written(record.created),
        "parameters": record.asked.to_context(),
        "pinned": {"parameters": record.spec.to_context(), "manifestDigest": record.digest, "contentBytes": record.content_bytes},
        "capacityBytes": record.capacity_bytes,
        "writerAccessModes": "downgrade" if record.downgrade_writers else "refuse",
    }
    if record.cloned_from:
        spec["clonedFrom"] = record.cloned_from
    if record.claim:
        spec["claim"] = record.claim.to_json()
    if record.namespace:
        spec["pinNamespace"] = record.namespace
    if record.performance != Performance():
        spec["performance"] = {key: _typed(key, text) for key, text in record.performance.to_context().items()}
    return {**kind_of(KIND), "metadata": {"name": name, "labels": {VOLUME_LABEL: label_value(record.id)}, **annotations}, "spec": spec}


def decode(thing: Mapping[str, Any]) -> VolumeRecord:
    """The record that `encode` made an object of; raises DataCacheError, naming the object, where it cannot be read."""
    try:
        return _decoded(thing["spec"])
    except (KeyError, TypeError, ValueError, AttributeError, InvalidParameter) as error:
        name = thing["metadata"]["name"]
        raise DataCacheError(f"the CacheVolume {name} cannot be read ({error}); restore it, or delete it if the volume is gone") from error


def _decoded(spec: Mapping[str, Any]) -> VolumeRecord:
    given, pinned = spec.get("performance", {}), spec["pinned"]
    performance = {key: json.dumps(value) if not isinstance(value, str) else value for key, value in given.items()}
    return VolumeRecord(
        id=spec["volumeID"],
        name=spec["name"],
        asked=parse_kept(spec["parameters"]).spec,
        spec=parse_kept(pinned["parameters"]).spec,
        digest=pinned["manifestDigest"],
        capacity_bytes=spec["capacityBytes"],
        content_bytes=pinned["contentBytes"],
        downgrade_writers=spec["writerAccessModes"] == "downgrade",
        cloned_from=spec.get("clonedFrom", ""),
        namespace=spec.get("pinNamespace", ""),
        created=_read(spec["created"]),
        performance=Performance().changed(performance),
        claim=Claim.from_json(spec["claim"]) if "claim" in spec else None,
    )


def status(thing: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The status that an object should have: its source in the words of people, and whether it can be read. `now` in seconds since 1970.

    An equal condition keeps the time of its last transition.
    """
    shown: dict[str, Any] = {}
    try:
        record = decode(thing)
        shown = _shown(record)
        held = f"{record.spec.source.shown} is image {record.digest[:12]} with {record.content_bytes} bytes"
        true, reason, message = "True", "Pinned", held
    except DataCacheError as error:
        true, reason, message = "False", "Unreadable", str(error)
    generation, old = thing["metadata"]["generation"], thing.get("status", {}).get("conditions", [])
    resolved = condition(old, "Resolved", true, reason, message[:4096], generation, now)
    return {**shown, "observedGeneration": generation, "conditions": [resolved]}


def _shown(record: VolumeRecord) -> dict[str, str]:
    return source_in_words(record.asked, record.spec) | {"image": record.digest[:12], "size": _size(record.content_bytes)}


def _size(count: float) -> str:
    for unit in ("", "Ki", "Mi", "Gi"):
        if count < 1024:
            return f"{count:.3g}{unit}"
        count /= 1024
    return f"{count:.3g}Ti"


def _typed(key: str, text: str) -> object:
    return text if key == "performanceLevel" else json.loads(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _written(seconds: float) -> str:
    """RFC 3339 with nanoseconds: nine digits tell every double of this century from the next."""
    whole, _, fraction = f"{seconds:.9f}".partition(".")
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(int(whole)))}.{fraction}Z"


def _read(text: str) -> float:
    match = _CREATED.fullmatch(text)
    if not match:
        raise ValueError(f"created is {text[:40]!r}, no time in UTC")
    return float(f"{calendar.timegm(time.strptime(match[1], '%Y-%m-%dT%H:%M:%S'))}{match[2] or ''}")
