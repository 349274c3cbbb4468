"""A pin as an object of the cluster: CachePin of datacache.csi.io/v1alpha1 (deploy/crds/cachepins.yaml), and back."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from typing import Any

from csi.errors import FailedPrecondition, InvalidParameter
from csi.registry.cache_volume import GROUP, VERSION, revision_of
from csi.registry.pins import CachePin, Holder
from csi.spec.parameters import parse_kept

KIND, PLURAL = "CachePin", "cachepins"
FIELDS = {"node": "nodes", "volume": "volumes"}
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def encode(pin: CachePin) -> dict[str, Any]:
    """The object, as it is created."""
    pinned = {"parameters": pin.pinned.to_context(), "manifestDigest": pin.digest}
    spec: dict[str, Any] = {"parameters": pin.asked.to_context(), "pinned": pinned}
    for holder, since in pin.holders.items():
        spec |= {FIELDS[holder.kind]: {**spec.get(FIELDS[holder.kind], {}), holder.name: written(since)}}
    return {**_kind(), "metadata": {"name": pin.name, "namespace": pin.namespace}, "spec": spec}


def decode(thing: Mapping[str, Any]) -> CachePin:
    """The pin that an object is; raises FailedPrecondition, naming it, where it cannot be read."""
    meta, spec = thing["metadata"], thing["spec"]
    try:
        pinned = spec["pinned"]
        held = {Holder(kind, name): _read(since) for kind, field in FIELDS.items() for name, since in spec.get(field, {}).items()}
        pin = CachePin(meta["namespace"], parse_kept(spec["parameters"]).spec, parse_kept(pinned["parameters"]).spec, pinned["manifestDigest"], held)
        if pin.name != meta["name"]:
            raise ValueError("its name is not that of its parameters")
        return pin
    except (KeyError, TypeError, ValueError, AttributeError, InvalidParameter) as error:
        where = f"CachePin {meta['namespace']}/{meta['name']}"
        raise FailedPrecondition(f"{where} cannot be read ({error}); kubectl delete cachepin -n {meta['namespace']} {meta['name']}") from error


def status(pin: CachePin) -> dict[str, str]:
    """What people are told: source, revision, pin, image and holders, in words."""
    asked, firm = revision_of(pin.asked), revision_of(pin.pinned)
    words = {"source": pin.asked.source.shown.removesuffix(f"@{asked}"), "revision": asked, "pin": firm[:12] if firm != asked else ""}
    return {key: text[:256] for key, text in words.items() if text} | {"image": pin.digest[:12], "holders": _holders(pin)}


def _holders(pin: CachePin) -> str:
    """As "node-a, 3 volumes": nodes by their names while they are few."""
    named = {kind: sorted(holder.name for holder in pin.holders if holder.kind == kind) for kind in FIELDS}
    words = [", ".join(names) if kind == "node" and len(names) <= 3 else _counted(kind, len(names)) for kind, names in named.items() if names]
    return ", ".join(words)[:256] or "none"


def _counted(kind: str, count: int) -> str:
    return f"{count} {kind}{'s' if count > 1 else ''}"


def status_patch(thing: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What is applied to the status subresource of this very object."""
    meta = thing["metadata"]
    return {**_kind(), "metadata": {key: meta[key] for key in ("name", "namespace", "uid")}, "status": said}


def _kind() -> dict[str, str]:
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}


def written(seconds: float) -> str:
    """RFC 3339 in whole seconds."""
    return time.strftime(_TIME, time.gmtime(seconds))


def _read(text: str) -> float:
    return float(calendar.timegm(time.strptime(text, _TIME)))
