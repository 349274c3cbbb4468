"""Fields of the driver's custom resources in this version, to compare a cluster's CRDs with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FIELDS_FILE = Path(__file__).with_name("crd_fields.json")
"""Fields by CRD and version, sorted; `deploy/generate.py` creates the file from deploy/crds."""

Fields = dict[str, list[str]]


def load_known_fields() -> dict[str, Fields]:
    """Return the fields that this version of the driver knows, by the CRD's name."""
    fields: dict[str, Fields] = json.loads(FIELDS_FILE.read_text())
    return fields


def list_crd_fields(crd: Mapping[str, Any]) -> Fields:
    """Return the fields of each served version of a CRD, sorted.

    They are written as `spec.caches[].claimName` and `spec.nodes{}`.
    """
    served = [version for version in crd["spec"]["versions"] if version["served"]]
    return {
        version["name"]: sorted(_walk_schema(version.get("schema", {}).get("openAPIV3Schema") or {}, ""))
        for version in served
    }


def _walk_schema(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, part in (schema.get("properties") or {}).items():
        yield f"{path}.{name}".lstrip(".")
        yield from _walk_schema(part, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), Mapping):
            yield from _walk_schema(schema[key], path + mark)
