"""The protocol between plugin and worker: one JSON object per line.

Requests arrive on the worker's standard input, events leave on its standard output. Secrets are in requests
only. A request is answered by any number of progress events, then one result or one error. A worker whose
input ends stops at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from csi.errors import DataCacheError
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.worker.operations import AnyOperation, Operation

OPERATIONS: Mapping[str, type[AnyOperation]] = {kind.name: kind for kind in get_args(AnyOperation)}
"""The class of each operation by its name on the pipe."""


@dataclass(frozen=True)
class WorkerRequest:
    """An operation as the worker receives it, with the operator's destinations that the pool has added."""

    operation: AnyOperation
    allowed_destinations: tuple[str, ...] = ()


def encode_request(operation: Operation[Any], allowed_destinations: Sequence[str] = ()) -> bytes:
    """Return a request as one line."""
    wire = {
        "operation": operation.name,
        "allowed_destinations": list(allowed_destinations),
        "fields": _encode(operation),
    }
    return json.dumps(wire).encode() + b"\n"


def decode_request(line: bytes) -> WorkerRequest:
    """Return the request in one line.

    Raises DataCacheError for an unknown operation, or one whose fields are not those of its class.
    """
    wire = json.loads(line)
    kind = OPERATIONS.get(wire["operation"])
    if kind is None:
        raise DataCacheError(
            f"a worker has no operation {wire['operation']!r}; it has {', '.join(OPERATIONS)}"
        )
    return WorkerRequest(_decode(kind, wire["fields"]), tuple(wire["allowed_destinations"]))


# The keys are the names of the fields: plugin and worker are always of the same version, and nothing of this
# is stored. What is stored (specs, resolutions, announcements) has an encoding of its own.


def _encode(value: Any) -> Any:
    match value:
        case CacheSpec():
            return value.to_context()
        case Secrets():
            return dict(value.values)
        case Path():
            return str(value)
        case tuple():
            return [_encode(item) for item in value]
        case Mapping():
            return dict(value)
        case _ if is_dataclass(value):
            return {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
        case _:
            return value


def _decode(kind: Any, wire: Any) -> Any:
    """Return the value of type `kind` that `_encode` encoded."""
    if kind is CacheSpec:
        return parse_volume_parameters(wire).spec
    if kind is Secrets or kind is Path:
        return kind(wire)
    if kind == Path | None:
        return None if wire is None else Path(wire)
    if get_origin(kind) is tuple:
        return tuple(_decode(get_args(kind)[0], item) for item in wire)
    if is_dataclass(kind):
        return _decode_fields(cast(type, kind), wire)
    return wire


def _decode_fields(kind: type, wire: Mapping[str, Any]) -> Any:
    hints = {field.name: get_type_hints(kind)[field.name] for field in fields(cast(Any, kind))}
    if wrong := wire.keys() ^ hints.keys():
        raise DataCacheError(
            f"a worker's {kind.__name__} has the keys {', '.join(hints)}; wrong: {min(wrong)}"
        )
    return kind(**{name: _decode(hint, wire[name]) for name, hint in hints.items()})
