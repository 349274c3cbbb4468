"""A registry that is the cluster itself: one CacheVolume a volume, on the Kubernetes API server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from csi.cluster.api_server import APPLY, ApiServer, Expired, path_of
from csi.cluster.watch import Watch, pages
from csi.errors import ClusterConflict, DataCacheError, InvalidParameter, NotFound
from csi.registry.custom_resource import GROUP, VERSION, apply_status
from csi.registry.notify import tell
from csi.registry.volumes.codec import KIND, PLURAL, VOLUME_LABEL, decode, encode, id_of, label_value, object_name, status
from csi.registry.volumes.fill_status import KEYS
from csi.registry.volumes.record import Interest, VolumeRecord

log = logging.getLogger("datacache.registry")

MANAGER = "datacache-controller"
_PATH = path_of("apis", GROUP, VERSION, PLURAL)
_TRIES = 5
# Labels of more volumes than this would make a URL that proxies before the server may refuse; then all volumes are watched.
MOST_SELECTED = 400


class KubernetesRegistry:
    """Volumes as CacheVolume objects. Every replica may use it: what two of them do to one volume at once, the API server puts in order.

    All methods raise ClusterUnavailable where the server cannot be reached, ClusterForbids where a right is missing, and
    FailedPrecondition where the CRDs are.
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def get(self, volume_id: str) -> VolumeRecord | None:
        """The record of `volume_id`; raises DataCacheError when its object is damaged."""
        thing = self._object(volume_id)
        record = decode(thing) if thing else None
        return record if record and record.id == volume_id else None

    def _object(self, volume_id: str) -> dict[str, Any] | None:
        try:
            return self._server.call("GET", f"{_PATH}/{object_name(volume_id)}")
        except NotFound:
            return None

    def add(self, record: VolumeRecord) -> VolumeRecord:
        """Apply the object. Where another replica has made it meanwhile the server refuses, since `created` cannot change: its record counts."""
        try:
            self._apply(encode(record))
        except InvalidParameter:
            kept = self.get(record.id)
            if kept is None:
                raise
            return kept
        return record

    def put(self, record: VolumeRecord) -> None:
        """Add or replace a record; raises InvalidParameter where it differs in what cannot change."""
        self._apply(encode(record))

    def change(self, volume_id: str, how: Callable[[VolumeRecord], VolumeRecord]) -> VolumeRecord | None:
        """See VolumeRegistry; raises ClusterConflict where others change the volume all the time."""
        for left in reversed(range(_TRIES)):
            thing = self._object(volume_id)
            record = decode(thing) if thing else None
            if thing is None or record is None or record.id != volume_id:
                return None
            changed = how(record)
            if changed == record:
                return record
            wanted = encode(changed)
            wanted["metadata"] |= {key: thing["metadata"][key] for key in ("uid", "resourceVersion")}
            try:
                self._apply(wanted)
                return changed
            except ClusterConflict:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _apply(self, thing: Mapping[str, Any]) -> None:
        # Strict: a server with an older CRD refuses what it does not know, in place of dropping it.
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        self._server.call("PATCH", f"{_PATH}/{thing['metadata']['name']}", query, thing, APPLY)

    def delete(self, volume_id: str) -> None:
        """Delete the object; one that is not there is no error."""
        try:
            self._server.call("DELETE", f"{_PATH}/{object_name(volume_id)}")
        except NotFound:
            return

    def page(self, after: str, limit: int) -> list[VolumeRecord]:
        """At most `limit` records behind the id `after`, by the names of their objects. One that is damaged is left out, with a log line.

        The server cannot begin in the middle, so a page costs what stands before it, too; volumes that come and go shift nothing.
        """
        while True:
            try:
                return self._page(object_name(after) if after else "", limit)
            except Expired:
                log.info("the list of volumes took too long, it is begun anew")

    def _page(self, after: str, limit: int) -> list[VolumeRecord]:
        found: list[VolumeRecord] = []
        for listed in pages(self._server, _PATH):
            for thing in listed["items"]:
                if thing["metadata"]["name"] > after and (record := _readable(thing)):
                    found.append(record)
                    if len(found) == limit:
                        return found
        return found

    @contextmanager
    def watch(self, changed: Callable[[str], None], only: Interest | None = None) -> Iterator[None]:
        """See VolumeRegistry. One watch, with a selector over the labels of `only`; it goes on when the server comes back."""
        ids: dict[str, str] = {}

        def selector() -> str | None:
            if only is None:
                return ""
            wanted = only.ids()
            ids.clear()
            ids.update({object_name(volume_id): volume_id for volume_id in wanted})
            return _selector(wanted)

        def told(name: str, thing: Mapping[str, Any] | None) -> None:
            if thing is not None and only is None:
                ids[name] = id_of(thing)
            volume_id = ids.get(name, name)
            if only is None or volume_id in only:
                tell(changed, volume_id)
            if thing is None and only is None:
                ids.pop(name, None)

        watch = Watch(self._server, _PATH, told, selector=selector)
        with (only or Interest()).heard(watch.renew), watch.running():
            yield

    @contextmanager
    def tended(self) -> Iterator[None]:
        """For the block, keep the status of every volume current. For one process at a time."""
        with Watch(self._server, _PATH, self._tend, metadata=False, everything=True).running():
            yield

    def _tend(self, name: str, thing: Mapping[str, Any] | None) -> None:
        said = thing and status(thing, time.time())
        # What nodes say of their fills is theirs.
        if thing is None or said == {key: value for key, value in thing.get("status", {}).items() if key not in KEYS}:
            return
        try:
            apply_status(self._server, KIND, f"{_PATH}/{name}", thing, said or {})
        except (NotFound, ClusterConflict):  # deleted meanwhile
            return
        except DataCacheError as error:
            log.warning("status not written", extra={"fields": {"volume": name, "reason": error}})


def _selector(wanted: frozenset[str]) -> str | None:
    if not wanted:
        return None
    return f"{VOLUME_LABEL} in ({','.join(sorted(map(label_value, wanted)))})" if len(wanted) <= MOST_SELECTED else ""


def _readable(thing: Mapping[str, Any]) -> VolumeRecord | None:
    try:
        return decode(thing)
    except DataCacheError as error:
        log.warning("a volume is left out of the list", extra={"fields": {"reason": error}})
        return None
