"""A pin as an object of the cluster: CachePin of datacache.csi.io/v1alpha1 (deploy/crds/cachepins.yaml), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csi.errors import FailedPrecondition, InvalidParameter
from csi.parameters.volume_parameters import parse_kept
from csi.registry.custom_resource import kind_of, read, source_in_words, written
from csi.registry.pins.pins import CachePin, Holder

KIND, PLURAL = "CachePin", "cachepins"
FIELDS = {"node": "nodes", "volume": "volumes"}


def encode(pin: CachePin) -> dict[str, Any]:
    """The object, as it is created."""
    pinned = {"parameters": pin.pinned.to_context(), "manifestDigest": pin.digest}
    spec: dict[str, Any] = {"parameters": pin.asked.to_context(), "pinned": pinned}
    for holder, since in pin.holders.items():
        spec |= {FIELDS[holder.kind]: {**spec.get(FIELDS[holder.kind], {}), holder.name: written(since)}}
    return {**kind_of(KIND), "metadata": {"name": pin.name, "namespace": pin.namespace}, "spec": spec}


def decode(thing: Mapping[str, Any]) -> CachePin:
    """The pin that an object is; raises FailedPrecondition, naming it, where it cannot be read."""
    meta, spec = thing["metadata"], thing["spec"]
    try:
        pinned = spec["pinned"]
        held = {Holder(kind, name): read(since) for kind, field in FIELDS.items() for name, since in spec.get(field, {}).items()}
        pin = CachePin(meta["namespace"], parse_kept(spec["parameters"]).spec, parse_kept(pinned["parameters"]).spec, pinned["manifestDigest"], held)
        if pin.name != meta["name"]:
            raise ValueError("its name is not that of its parameters")
        return pin
    except (KeyError, TypeError, ValueError, AttributeError, InvalidParameter) as error:
        where = f"CachePin {meta['namespace']}/{meta['name']}"
        raise FailedPrecondition(f"{where} cannot be read ({error}); kubectl delete cachepin -n {meta['namespace']} {meta['name']}") from error


def status(pin: CachePin) -> dict[str, str]:
    """What people are told: source, revision, pin, image and holders, in words."""
    return source_in_words(pin.asked, pin.pinned) | {"image": pin.digest[:12], "holders": _holders(pin)}


def _holders(pin: CachePin) -> str:
    """As "node-a, 3 volumes": nodes by their names while they are few."""
    named = {kind: sorted(holder.name for holder in pin.holders if holder.kind == kind) for kind in FIELDS}
    words = [", ".join(names) if kind == "node" and len(names) <= 3 else _counted(kind, len(names)) for kind, names in named.items() if names]
    return ", ".join(words)[:256] or "none"


def _counted(kind: str, count: int) -> str:
    return f"{count} {kind}{'s' if count > 1 else ''}"
