"""Conversion of a pin to and from its object.

The object is a CachePin of datacache.csi.io/v1alpha1 (deploy/crds/cachepins.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csi.errors import FailedPrecondition, InvalidParameter
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.registry.custom_resource import describe_source, format_time, parse_time, type_meta
from csi.registry.pins.pins import CachePin, PinHolder

KIND, PLURAL = "CachePin", "cachepins"
HOLDER_FIELDS = {"node": "nodes", "volume": "volumes"}


def encode(pin: CachePin) -> dict[str, Any]:
    """Encode the object for its creation."""
    pinned = {"parameters": pin.pinned.to_context(), "manifestDigest": pin.digest}
    spec: dict[str, Any] = {"parameters": pin.requested.to_context(), "pinned": pinned}
    for holder, since in pin.holders.items():
        spec |= {
            HOLDER_FIELDS[holder.kind]: {
                **spec.get(HOLDER_FIELDS[holder.kind], {}),
                holder.name: format_time(since),
            }
        }
    return {**type_meta(KIND), "metadata": {"name": pin.name, "namespace": pin.namespace}, "spec": spec}


def decode(obj: Mapping[str, Any]) -> CachePin:
    """Decode a pin from its object; raises FailedPrecondition, naming the object, if it is malformed."""
    meta, spec = obj["metadata"], obj["spec"]
    try:
        pinned = spec["pinned"]
        holders = {
            PinHolder(kind, name): parse_time(since)
            for kind, field in HOLDER_FIELDS.items()
            for name, since in spec.get(field, {}).items()
        }
        pin = CachePin(
            meta["namespace"],
            parse_accepted_parameters(spec["parameters"]).spec,
            parse_accepted_parameters(pinned["parameters"]).spec,
            pinned["manifestDigest"],
            holders,
        )
        if pin.name != meta["name"]:
            raise ValueError("its name is not that of its parameters")
        return pin
    except (KeyError, TypeError, ValueError, AttributeError, InvalidParameter) as error:
        where = f"CachePin {meta['namespace']}/{meta['name']}"
        raise FailedPrecondition(
            f"{where} cannot be read ({error}); kubectl delete cachepin -n {meta['namespace']} {meta['name']}"
        ) from error


def build_status(pin: CachePin) -> dict[str, str]:
    """Build the status: source, revision, pin, image and holders, as shown to people."""
    return describe_source(pin.requested, pin.pinned) | {
        "image": pin.digest[:12],
        "holders": _describe_holders(pin),
    }


def _describe_holders(pin: CachePin) -> str:
    """Describe the holders as "node-a, 3 volumes". Up to three nodes are named."""
    named = {
        kind: sorted(holder.name for holder in pin.holders if holder.kind == kind) for kind in HOLDER_FIELDS
    }
    words = [
        ", ".join(names) if kind == "node" and len(names) <= 3 else _format_count(kind, len(names))
        for kind, names in named.items()
        if names
    ]
    return ", ".join(words)[:256] or "none"


def _format_count(kind: str, count: int) -> str:
    return f"{count} {kind}{'s' if count > 1 else ''}"
