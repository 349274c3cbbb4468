"""Pins as CachePin objects, on the Kubernetes API server.

Holders are keys of a map, so that one comes or goes by a patch that disturbs no other: a hundred nodes at once need no second try. What
has to be certain is asserted with it: the uid of the pin that is joined, and the very version that has nobody left when it is deleted.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from csi.cluster.api_server import ApiServer, path_of
from csi.cluster.watch import Watch, pages
from csi.errors import ClusterConflict, DataCacheError, InvalidParameter, NotFound
from csi.registry.custom_resource import GROUP, VERSION, apply_status, written
from csi.registry.pins.codec import FIELDS, KIND, PLURAL, decode, encode, status
from csi.registry.pins.pins import CachePin, Holder

log = logging.getLogger("datacache.pins")

_ALL = path_of("apis", GROUP, VERSION, PLURAL)
_MERGE = "application/merge-patch+json"
MANAGER = "datacache-pins"
_TRIES = 8
# A pin is held before the volume is recorded that holds it.
_YOUNG_SECONDS = 600.0


class KubernetesPins:
    """See PinRegistry."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def get(self, namespace: str, name: str) -> CachePin | None:
        """See PinRegistry."""
        thing = self._object(namespace, name)
        return decode(thing) if thing else None

    def _object(self, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", path_in(namespace, name))
        except NotFound:
            return None

    def hold(self, pin: CachePin, holder: Holder) -> CachePin:
        """See PinRegistry."""
        mine = replace(pin, holders={holder: time.time()})
        for left in reversed(range(_TRIES)):
            thing = self._object(pin.namespace, pin.name)
            kept = decode(thing) if thing else None
            if kept and holder in kept.holders:
                return kept
            try:
                return decode(self._joined(thing, mine) if thing else self._made(mine))
            except (ClusterConflict, _Gone):  # made or removed by somebody else meanwhile
                if not left:
                    raise ClusterConflict(f"{pin.shown} changes all the time; the call is tried again") from None
                time.sleep(random.uniform(0, 0.05))
        raise AssertionError("unreachable")

    def _made(self, pin: CachePin) -> dict[str, Any]:
        return self._server.call("POST", path_in(pin.namespace), _query(), encode(pin))

    def _joined(self, thing: Mapping[str, Any], pin: CachePin) -> dict[str, Any]:
        held = {FIELDS[holder.kind]: {holder.name: written(since)} for holder, since in pin.holders.items()}
        patch = {"metadata": {"uid": thing["metadata"]["uid"]}, "spec": held}
        try:
            return self._server.call("PATCH", path_in(pin.namespace, pin.name), _query(), patch, _MERGE)
        except NotFound as error:
            raise _Gone from error
        except InvalidParameter as error:
            if "metadata.uid" not in str(error):  # how the server says that this is another object by now
                raise
            raise _Gone from error

    def release(self, namespace: str, name: str, holder: Holder) -> None:
        """See PinRegistry."""
        patch = {"spec": {FIELDS[holder.kind]: {holder.name: None}}}
        try:
            thing: dict[str, Any] | None = self._server.call("PATCH", path_in(namespace, name), _query(), patch, _MERGE)
        except NotFound:
            return None
        for _ in range(_TRIES):
            if thing is None or any(thing["spec"].get(field) for field in FIELDS.values()):
                return None
            try:
                return self._remove(thing)
            except ClusterConflict:  # somebody came, or the status was written
                thing = self._object(namespace, name)
        raise ClusterConflict(f"CachePin {namespace}/{name} changes all the time; it is removed later")

    def _remove(self, thing: Mapping[str, Any]) -> None:
        """Delete the object; raises ClusterConflict where it has changed since."""
        meta = thing["metadata"]
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {key: meta[key] for key in ("uid", "resourceVersion")}}
        with suppress(NotFound):
            self._server.call("DELETE", path_in(meta["namespace"], meta["name"]), body=body)

    def all(self) -> Iterator[CachePin]:
        """See PinRegistry."""
        for page in pages(self._server, _ALL):
            for thing in page["items"]:
                try:
                    yield decode(thing)
                except DataCacheError as error:
                    log.warning("a pin is left out", extra={"fields": {"reason": error}})

    @contextmanager
    def tended(self) -> Iterator[None]:
        """For the block, say in each pin's status what it is. For one process at a time."""
        with Watch(self._server, _ALL, self._tell, metadata=False, everything=True).running():
            yield

    def _tell(self, key: str, thing: Mapping[str, Any] | None) -> None:
        if thing is None:
            return
        try:
            said = status(decode(thing))
            if said != thing.get("status"):
                apply_status(self._server, KIND, path_in(thing["metadata"]["namespace"], thing["metadata"]["name"]), thing, said)
        except (NotFound, ClusterConflict):  # deleted meanwhile
            return
        except DataCacheError as error:
            log.warning("status not written", extra={"fields": {"pin": key, "reason": error}})


class _Gone(Exception):
    """The pin was removed, and maybe made anew, before it could be joined."""


class PinHolders:
    """The holders of pins (see Traces): nodes that were deleted and volumes without a record are to hold none. `clock` is seconds since 1970."""

    kind = "CachePin"

    def __init__(self, pins: KubernetesPins, has_volume: Callable[[str], bool], clock: Callable[[], float] = time.time) -> None:
        self._pins, self._has_volume, self._clock = pins, has_volume, clock
        self._kept: list[CachePin] = []

    def nodes(self) -> frozenset[str]:
        """See Traces."""
        self._kept = list(self._pins.all())
        return frozenset(holder.name for pin in self._kept for holder in pin.holders if holder.kind == "node")

    def sweep(self, gone: frozenset[str]) -> None:
        """See Traces."""
        for pin in self._kept:
            for holder in [each for each, since in pin.holders.items() if self._is_gone(each, since, gone)] or ([] if pin.holders else [_NOBODY]):
                log.info("holder swept", extra={"fields": {"pin": pin.shown, "holder": holder.name}})
                self._pins.release(pin.namespace, pin.name, holder)

    def _is_gone(self, holder: Holder, since: float, gone: frozenset[str]) -> bool:
        if holder.kind == "node":
            return holder.name in gone
        return self._clock() - since > _YOUNG_SECONDS and not self._has_volume(holder.name)


# A pin that was left by its last holder and not removed goes when anybody leaves it.
_NOBODY = Holder("node", "nobody")


def path_in(namespace: str, *name: str) -> str:
    """The path of a namespace's pins, or of one."""
    return path_of("apis", GROUP, VERSION, "namespaces", namespace, PLURAL, *name)


def _query() -> dict[str, str]:
    return {"fieldManager": MANAGER, "fieldValidation": "Strict"}
