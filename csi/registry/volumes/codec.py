"""Conversion of a volume to and from its object.

The object is a CacheVolume of datacache.csi.io/v1alpha1 (deploy/crds/cachevolumes.yaml).
"""

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
from csi.parameters.pvc import PvcReference
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.registry.custom_resource import GROUP, build_condition, describe_source, type_meta
from csi.registry.volumes.record import VolumeRecord

KIND, PLURAL = "CacheVolume", "cachevolumes"
VOLUME_LABEL, ID_ANNOTATION = f"{GROUP}/volume", f"{GROUP}/volume-id"
# A DNS subdomain (RFC 1123), as names of objects are.
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_HASHED_PREFIX = "hashed-"
_CREATED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z", re.ASCII)


def object_name(volume_id: str) -> str:
    """Return the name of a volume's object: its id if valid, else "hashed-" and the id's SHA-256."""
    if (
        len(volume_id) <= 253
        and _DNS_SUBDOMAIN.fullmatch(volume_id)
        and not volume_id.startswith(_HASHED_PREFIX)
    ):
        return volume_id
    return _HASHED_PREFIX + _sha256(volume_id)


def label_value(volume_id: str) -> str:
    """Return the value of the volume's label.

    It has 16 hex digits, so that a selector of hundreds of volumes fits into a URL.
    """
    return _sha256(volume_id)[:16]


def get_volume_id(obj: Mapping[str, Any]) -> str:
    """Return the volume id of an object of which only the metadata is known."""
    meta = obj["metadata"]
    return str(meta.get("annotations", {}).get(ID_ANNOTATION, meta["name"]))


def encode(record: VolumeRecord) -> dict[str, Any]:
    """Encode the object for a server-side apply."""
    name = object_name(record.id)
    annotations = {} if name == record.id else {"annotations": {ID_ANNOTATION: record.id}}
    spec: dict[str, Any] = {
        "volumeID": record.id,
        "name": record.name,
        "created": _format_created(record.created_at),
        "parameters": record.requested_spec.to_context(),
        "pinned": {
            "parameters": record.spec.to_context(),
            "manifestDigest": record.digest,
            "contentBytes": record.content_bytes,
        },
        "capacityBytes": record.capacity_bytes,
        "writerAccessModes": "downgrade" if record.downgrade_writers else "refuse",
    }
    if record.cloned_from:
        spec["clonedFrom"] = record.cloned_from
    if record.pvc:
        spec["claim"] = record.pvc.to_json()
    if record.pin_namespace:
        spec["pinNamespace"] = record.pin_namespace
    if record.performance != Performance():
        spec["performance"] = {
            key: _to_json_value(key, text) for key, text in record.performance.to_context().items()
        }
    return {
        **type_meta(KIND),
        "metadata": {"name": name, "labels": {VOLUME_LABEL: label_value(record.id)}, **annotations},
        "spec": spec,
    }


def decode(obj: Mapping[str, Any]) -> VolumeRecord:
    """Decode a record from its object; raises DataCacheError, naming the object, if it is malformed."""
    try:
        return _decode_spec(obj["spec"])
    except (KeyError, TypeError, ValueError, AttributeError, InvalidParameter) as error:
        name = obj["metadata"]["name"]
        raise DataCacheError(
            f"the CacheVolume {name} cannot be read ({error}); restore it, or delete it if the volume is gone"
        ) from error


def _decode_spec(spec: Mapping[str, Any]) -> VolumeRecord:
    performance_values, pinned = spec.get("performance", {}), spec["pinned"]
    performance = {
        key: json.dumps(value) if not isinstance(value, str) else value
        for key, value in performance_values.items()
    }
    return VolumeRecord(
        id=spec["volumeID"],
        name=spec["name"],
        requested_spec=parse_accepted_parameters(spec["parameters"]).spec,
        spec=parse_accepted_parameters(pinned["parameters"]).spec,
        digest=pinned["manifestDigest"],
        capacity_bytes=spec["capacityBytes"],
        content_bytes=pinned["contentBytes"],
        downgrade_writers=spec["writerAccessModes"] == "downgrade",
        cloned_from=spec.get("clonedFrom", ""),
        pin_namespace=spec.get("pinNamespace", ""),
        created_at=_parse_created(spec["created"]),
        performance=Performance().with_changes(performance),
        pvc=PvcReference.from_json(spec["claim"]) if "claim" in spec else None,
    )


def build_status(obj: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Build the status that an object should have: its source in readable form, and whether it can be read.

    `now` is in seconds since 1970.
    """
    columns: dict[str, Any] = {}
    try:
        record = decode(obj)
        columns = _build_columns(record)
        summary = (
            f"{record.spec.source.display_name} is image {record.digest[:12]} "
            f"with {record.content_bytes} bytes"
        )
        condition_status, reason, message = "True", "Pinned", summary
    except DataCacheError as error:
        condition_status, reason, message = "False", "Unreadable", str(error)
    generation, old = obj["metadata"]["generation"], obj.get("status", {}).get("conditions", [])
    # 4096 characters are the CRD's limit for a message.
    resolved = build_condition(old, "Resolved", condition_status, reason, message[:4096], generation, now)
    return {**columns, "observedGeneration": generation, "conditions": [resolved]}


def _build_columns(record: VolumeRecord) -> dict[str, str]:
    return describe_source(record.requested_spec, record.spec) | {
        "image": record.digest[:12],
        "size": _format_size(record.content_bytes),
    }


def _format_size(count: float) -> str:
    for unit in ("", "Ki", "Mi", "Gi"):
        if count < 1024:
            return f"{count:.3g}{unit}"
        count /= 1024
    return f"{count:.3g}Ti"


def _to_json_value(key: str, text: str) -> object:
    return text if key == "performanceLevel" else json.loads(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _format_created(seconds: float) -> str:
    """Format a time as RFC 3339 with nanoseconds: nine digits distinguish all doubles of this century."""
    whole_seconds, _, fraction = f"{seconds:.9f}".partition(".")
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(int(whole_seconds)))}.{fraction}Z"


def _parse_created(text: str) -> float:
    match = _CREATED.fullmatch(text)
    if not match:
        raise ValueError(f"created is {text[:40]!r}, which is not a time in UTC")
    return float(f"{calendar.timegm(time.strptime(match[1], '%Y-%m-%dT%H:%M:%S'))}{match[2] or ''}")
