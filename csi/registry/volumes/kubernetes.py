"""Volume registry in the cluster: one CacheVolume object per volume."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from csi.cluster.api_server import APPLY_PATCH, ApiServer, ResourceExpired, api_path
from csi.cluster.watch import Watch, list_pages
from csi.errors import ClusterConflict, DataCacheError, InvalidParameter, NotFound
from csi.registry.custom_resource import GROUP, VERSION, apply_status
from csi.registry.notify import notify_watcher
from csi.registry.volumes.codec import (
    KIND,
    PLURAL,
    VOLUME_LABEL,
    build_status,
    decode,
    encode,
    get_volume_id,
    label_value,
    object_name,
)
from csi.registry.volumes.fill_status import FILL_STATUS_KEYS
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry, WatchedVolumes

log = logging.getLogger("datacache.registry")

CONTROLLER_MANAGER = "datacache-controller"
_PATH = api_path("apis", GROUP, VERSION, PLURAL)
_MAX_TRIES = 5
# The labels of more volumes would make a URL that proxies before the server may reject; then all volumes are
# watched.
MAX_SELECTED_VOLUMES = 400


class KubernetesVolumeRegistry(VolumeRegistry):
    """Volumes as CacheVolume objects.

    Every replica may use it; the API server serializes concurrent changes.

    All methods raise ClusterUnavailable if the server cannot be reached, ClusterForbids if a permission is
    missing, and FailedPrecondition if the CRDs are missing.
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def get(self, volume_id: str) -> VolumeRecord | None:
        obj = self._get_object(volume_id)
        record = decode(obj) if obj else None
        return record if record and record.id == volume_id else None

    def _get_object(self, volume_id: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", f"{_PATH}/{object_name(volume_id)}")
        except NotFound:
            return None

    def add(self, record: VolumeRecord) -> VolumeRecord:
        # If another replica has created the object meanwhile, the server rejects this one, since `created` is
        # immutable. The other replica's record counts.
        try:
            self._apply(encode(record))
        except InvalidParameter:
            existing = self.get(record.id)
            if existing is None:
                raise
            return existing
        return record

    def put(self, record: VolumeRecord) -> None:
        """Add or replace a record; raises InvalidParameter if an immutable field differs."""
        self._apply(encode(record))

    def change(self, volume_id: str, update: Callable[[VolumeRecord], VolumeRecord]) -> VolumeRecord | None:
        for tries_left in reversed(range(_MAX_TRIES)):
            obj = self._get_object(volume_id)
            record = decode(obj) if obj else None
            if obj is None or record is None or record.id != volume_id:
                return None
            changed = update(record)
            if changed == record:
                return record
            updated = encode(changed)
            updated["metadata"] |= {key: obj["metadata"][key] for key in ("uid", "resourceVersion")}
            try:
                self._apply(updated)
                return changed
            except ClusterConflict:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def _apply(self, obj: Mapping[str, Any]) -> None:
        # Strict: a server with an older CRD rejects unknown fields instead of dropping them.
        query = {"fieldManager": CONTROLLER_MANAGER, "force": "true", "fieldValidation": "Strict"}
        self._server.call("PATCH", f"{_PATH}/{obj['metadata']['name']}", query, obj, APPLY_PATCH)

    def delete(self, volume_id: str) -> None:
        try:
            self._server.call("DELETE", f"{_PATH}/{object_name(volume_id)}")
        except NotFound:
            return

    def list_page(self, after: str, limit: int) -> list[VolumeRecord]:
        # The server cannot start a list in the middle, so a page costs all pages before it; in return,
        # volumes that come and go shift nothing. Damaged records are left out, with a log line.
        while True:
            try:
                return self._list_page(object_name(after) if after else "", limit)
            except ResourceExpired:
                log.info("list of volumes expired; listing again")

    def _list_page(self, after: str, limit: int) -> list[VolumeRecord]:
        records: list[VolumeRecord] = []
        for listed in list_pages(self._server, _PATH):
            for obj in listed["items"]:
                if obj["metadata"]["name"] > after and (record := _decode_or_log(obj)):
                    records.append(record)
                    if len(records) == limit:
                        return records
        return records

    @contextmanager
    def watch(self, on_change: Callable[[str], None], only: WatchedVolumes | None = None) -> Iterator[None]:
        # One watch, with a selector over the labels of `only`; it continues when the server comes back.
        ids: dict[str, str] = {}

        def selector() -> str | None:
            if only is None:
                return ""
            watched = only.ids()
            ids.clear()
            ids.update({object_name(volume_id): volume_id for volume_id in watched})
            return _label_selector(watched)

        def on_object(name: str, obj: Mapping[str, Any] | None) -> None:
            if obj is not None and only is None:
                ids[name] = get_volume_id(obj)
            volume_id = ids.get(name, name)
            if only is None or volume_id in only:
                notify_watcher(on_change, volume_id)
            if obj is None and only is None:
                ids.pop(name, None)

        watch = Watch(self._server, _PATH, on_object, selector=selector)
        with (only or WatchedVolumes()).notify_on_change(watch.refresh_selector), watch.run_in_background():
            yield

    @contextmanager
    def maintain_statuses(self) -> Iterator[None]:
        """Keep the status of every volume up to date during the block.

        For one process at a time.
        """
        with Watch(self._server, _PATH, self._update_status, full_objects=True).run_in_background():
            yield

    def _update_status(self, name: str, obj: Mapping[str, Any] | None) -> None:
        wanted_status = obj and build_status(obj, time.time())
        # Fields that nodes write about their fills are not this program's.
        if obj is None or wanted_status == {
            key: value for key, value in obj.get("status", {}).items() if key not in FILL_STATUS_KEYS
        }:
            return
        try:
            apply_status(self._server, KIND, f"{_PATH}/{name}", obj, wanted_status or {})
        except (NotFound, ClusterConflict):  # deleted or replaced concurrently
            return
        except DataCacheError as error:
            log.warning("status not written", extra={"fields": {"volume": name, "reason": error}})


def _label_selector(volume_ids: frozenset[str]) -> str | None:
    if not volume_ids:
        return None
    return (
        f"{VOLUME_LABEL} in ({','.join(sorted(map(label_value, volume_ids)))})"
        if len(volume_ids) <= MAX_SELECTED_VOLUMES
        else ""
    )


def _decode_or_log(obj: Mapping[str, Any]) -> VolumeRecord | None:
    try:
        return decode(obj)
    except DataCacheError as error:
        log.warning("unreadable volume skipped", extra={"fields": {"reason": error}})
        return None
