"""Pins as CachePin objects of the cluster.

Holders are keys of a map, so that a patch adds or removes one without touching others: a hundred nodes at
once need no retries. Preconditions guard the rest: the uid of the pin that is joined, and the version without
holders that is deleted.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from csi.cluster.api_server import ApiServer, api_path
from csi.cluster.watch import Watch, list_pages
from csi.errors import ClusterConflict, DataCacheError, InvalidParameter, NotFound
from csi.registry.custom_resource import GROUP, VERSION, apply_status, format_time
from csi.registry.garbage_collector import NodeReferences
from csi.registry.pins.codec import HOLDER_FIELDS, KIND, PLURAL, build_status, decode, encode
from csi.registry.pins.pins import CachePin, PinHolder, PinRegistry

log = logging.getLogger("datacache.pins")

_ALL_PINS_PATH = api_path("apis", GROUP, VERSION, PLURAL)
_MERGE = "application/merge-patch+json"
PINS_MANAGER = "datacache-pins"
_MAX_TRIES = 8
# A volume's pin is held before the volume is recorded.
_CREATION_GRACE = 600.0


class KubernetesPinRegistry(PinRegistry):
    """Registry of CachePin objects."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def get(self, namespace: str, name: str) -> CachePin | None:
        obj = self._get_object(namespace, name)
        return decode(obj) if obj else None

    def _get_object(self, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", pins_path(namespace, name))
        except NotFound:
            return None

    def add_holder(self, pin: CachePin, holder: PinHolder) -> CachePin:
        own = replace(pin, holders={holder: time.time()})
        for tries_left in reversed(range(_MAX_TRIES)):
            obj = self._get_object(pin.namespace, pin.name)
            existing = decode(obj) if obj else None
            if existing and holder in existing.holders:
                return existing
            try:
                return decode(self._join(obj, own) if obj else self._create(own))
            except (ClusterConflict, _PinVanished):  # created or deleted concurrently
                if not tries_left:
                    raise ClusterConflict(
                        f"{pin.display_name} is changed again and again; the call is retried"
                    ) from None
                time.sleep(random.uniform(0, 0.05))
        raise AssertionError("unreachable")

    def _create(self, pin: CachePin) -> dict[str, Any]:
        return self._server.call("POST", pins_path(pin.namespace), _write_query(), encode(pin))

    def _join(self, obj: Mapping[str, Any], pin: CachePin) -> dict[str, Any]:
        holders = {
            HOLDER_FIELDS[holder.kind]: {holder.name: format_time(since)}
            for holder, since in pin.holders.items()
        }
        patch = {"metadata": {"uid": obj["metadata"]["uid"]}, "spec": holders}
        try:
            return self._server.call(
                "PATCH", pins_path(pin.namespace, pin.name), _write_query(), patch, _MERGE
            )
        except NotFound as error:
            raise _PinVanished from error
        except InvalidParameter as error:
            if "metadata.uid" not in str(error):  # the server's answer if the object was replaced by another
                raise
            raise _PinVanished from error

    def remove_holder(self, namespace: str, name: str, holder: PinHolder) -> None:
        patch = {"spec": {HOLDER_FIELDS[holder.kind]: {holder.name: None}}}
        try:
            obj: dict[str, Any] | None = self._server.call(
                "PATCH", pins_path(namespace, name), _write_query(), patch, _MERGE
            )
        except NotFound:
            return None
        for _ in range(_MAX_TRIES):
            if obj is None or any(obj["spec"].get(field) for field in HOLDER_FIELDS.values()):
                return None
            try:
                return self._delete_unchanged(obj)
            except ClusterConflict:  # a holder joined, or the status was written
                obj = self._get_object(namespace, name)
        raise ClusterConflict(f"CachePin {namespace}/{name} is changed again and again; it is removed later")

    def _delete_unchanged(self, obj: Mapping[str, Any]) -> None:
        """Delete the object; raises ClusterConflict if it has changed since it was read."""
        meta = obj["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {key: meta[key] for key in ("uid", "resourceVersion")},
        }
        with suppress(NotFound):
            self._server.call("DELETE", pins_path(meta["namespace"], meta["name"]), body=body)

    def list_all(self) -> Iterator[CachePin]:
        for page in list_pages(self._server, _ALL_PINS_PATH):
            for obj in page["items"]:
                try:
                    yield decode(obj)
                except DataCacheError as error:
                    log.warning("unreadable pin skipped", extra={"fields": {"reason": error}})

    @contextmanager
    def maintain_statuses(self) -> Iterator[None]:
        """Keep the status of each pin up to date during the block.

        For one process at a time.
        """
        with Watch(self._server, _ALL_PINS_PATH, self._update_status, full_objects=True).run_in_background():
            yield

    def _update_status(self, key: str, obj: Mapping[str, Any] | None) -> None:
        if obj is None:
            return
        try:
            wanted_status = build_status(decode(obj))
            if wanted_status != obj.get("status"):
                apply_status(
                    self._server,
                    KIND,
                    pins_path(obj["metadata"]["namespace"], obj["metadata"]["name"]),
                    obj,
                    wanted_status,
                )
        except (NotFound, ClusterConflict):  # deleted or replaced concurrently
            return
        except DataCacheError as error:
            log.warning("status not written", extra={"fields": {"pin": key, "reason": error}})


class _PinVanished(Exception):
    """The pin was deleted, and perhaps created again, before it could be joined."""


class PinHolderReferences(NodeReferences):
    """Holders of pins.

    Deleted nodes and volumes without a record may hold none. `clock` is in seconds since 1970.
    """

    kind = "CachePin"

    def __init__(
        self,
        pins: KubernetesPinRegistry,
        has_volume: Callable[[str], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pins, self._has_volume, self._clock = pins, has_volume, clock
        self._pins_seen: list[CachePin] = []

    def list_nodes(self) -> frozenset[str]:
        self._pins_seen = list(self._pins.list_all())
        return frozenset(
            holder.name for pin in self._pins_seen for holder in pin.holders if holder.kind == "node"
        )

    def remove_stale(self, gone: frozenset[str]) -> None:
        for pin in self._pins_seen:
            for holder in [
                candidate for candidate, since in pin.holders.items() if self._is_gone(candidate, since, gone)
            ] or ([] if pin.holders else [_NOBODY]):
                log.info("holder removed", extra={"fields": {"pin": pin.display_name, "holder": holder.name}})
                self._pins.remove_holder(pin.namespace, pin.name, holder)

    def _is_gone(self, holder: PinHolder, since: float, gone: frozenset[str]) -> bool:
        if holder.kind == "node":
            return holder.name in gone
        return self._clock() - since > _CREATION_GRACE and not self._has_volume(holder.name)


# Removing any holder deletes a pin without holders, which its last holder may have left behind.
_NOBODY = PinHolder("node", "nobody")


def pins_path(namespace: str, *name: str) -> str:
    """Return the path of a namespace's pins, or of one of them."""
    return api_path("apis", GROUP, VERSION, "namespaces", namespace, PLURAL, *name)


def _write_query() -> dict[str, str]:
    return {"fieldManager": PINS_MANAGER, "fieldValidation": "Strict"}
