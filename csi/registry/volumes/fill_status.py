"""The fills of a volume in the status of its CacheVolume: one short entry for each node that fills it now, and all of them in words.

Written by nodes, each with the version that it has read, so that the words are always those of the entries. Entries are bounded, and
those of fills that were lost in the middle go with the next write, or are swept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from typing import Any

from csi.cluster.api_server import MERGE_PATCH, ApiServer, api_path
from csi.cluster.watch import list_pages
from csi.errors import ClusterConflict, NotFound
from csi.registry.custom_resource import GROUP, VERSION, format_time, parse_time
from csi.registry.volumes.codec import PLURAL, object_name

log = logging.getLogger("datacache.fills")

FILL_STATUS_MANAGER = "datacache-node"
MAX_FILLING_NODES = 16
"""Nodes beyond these fill without being shown."""
FILL_STATUS_KEYS = ("filling", "fills")
_PATH = api_path("apis", GROUP, VERSION, PLURAL)
_STALE_FILL_SECONDS = 120.0


class FillStatusWriter:
    """Writes what the node `node` fills. Used by one thread."""

    def __init__(self, server: ApiServer, node: str) -> None:
        self._server, self._node = server, node
        self._last_seen: dict[str, Mapping[str, Any]] = {}

    def write(self, volume_id: str, percent: int | None) -> None:
        """See Announcer.filling. One call where nobody else writes meanwhile, else three; raises ClusterConflict and as `ApiServer.call`."""
        path, seen = f"{_PATH}/{object_name(volume_id)}", self._last_seen.pop(volume_id, None)
        try:
            written = self._patch_status(path, seen, percent) if seen else None
        except (NotFound, ClusterConflict):
            written = None
        try:
            written = written or self._patch_status(path, self._server.call("GET", path), percent)
        except NotFound:  # deleted, or a static PV's
            return
        if percent is not None:
            self._last_seen[volume_id] = {
                "metadata": {"resourceVersion": written["metadata"]["resourceVersion"]},
                "status": written.get("status", {}),
            }

    def _patch_status(self, path: str, seen: Mapping[str, Any], percent: int | None) -> Mapping[str, Any]:
        patch = patch_with_fill(seen.get("status", {}), self._node, percent, time.time())
        if patch is None:
            return seen
        body = {"metadata": {"resourceVersion": seen["metadata"]["resourceVersion"]}, "status": patch}
        return self._server.call(
            "PATCH", f"{path}/status", {"fieldManager": FILL_STATUS_MANAGER}, body, MERGE_PATCH
        )


class FillReferences:
    """The nodes in the status of CacheVolumes (see Traces). A fill that nobody has written of for two minutes is lost, wherever its node is."""

    kind = "CacheVolume"

    def __init__(self, server: ApiServer, clock: Callable[[], float] = time.time) -> None:
        self._server, self._clock = server, clock
        self._objects: list[Mapping[str, Any]] = []

    def list_nodes(self) -> frozenset[str]:
        """See Traces."""
        objects = (obj for page in list_pages(self._server, _PATH) for obj in page["items"])
        self._objects = [obj for obj in objects if obj.get("status", {}).get("fills")]
        return frozenset(fill["node"] for obj in self._objects for fill in obj["status"]["fills"])

    def remove_nodes(self, gone: frozenset[str]) -> None:
        """See Traces."""
        for obj in self._objects:
            patch = patch_without_nodes(obj["status"], gone, self._clock())
            if patch:
                meta = obj["metadata"]
                log.info(
                    "fills swept",
                    extra={"fields": {"volume": meta["name"], "left": patch["filling"] or "none"}},
                )
                body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
                with suppress(NotFound, ClusterConflict):  # one that has changed meanwhile is looked at again
                    self._server.call(
                        "PATCH",
                        f"{_PATH}/{meta['name']}/status",
                        {"fieldManager": FILL_STATUS_MANAGER},
                        body,
                        MERGE_PATCH,
                    )


def patch_with_fill(
    status: Mapping[str, Any], node: str, percent: int | None, now: float
) -> dict[str, Any] | None:
    """What a merge patch changes in `status` so that it shows how full the image is on `node`; None for nothing. `now` in seconds since 1970."""
    fills = _fills_of_others(status, {node}, now)
    if percent is not None and len(fills) < MAX_FILLING_NODES:
        fills.append({"node": node, "percent": percent, "updated": format_time(now)})
    return _build_patch(status, fills)


def patch_without_nodes(status: Mapping[str, Any], gone: Set[str], now: float) -> dict[str, Any] | None:
    """As `patch_with_fill`, so that it shows none of the nodes `gone`."""
    return _build_patch(status, _fills_of_others(status, gone, now))


def _fills_of_others(status: Mapping[str, Any], left_out: Set[str], now: float) -> list[dict[str, Any]]:
    """The entries of all other nodes, but for fills that were lost."""
    return [
        fill
        for fill in status.get("fills") or []
        if fill["node"] not in left_out and now - parse_time(fill["updated"]) < _STALE_FILL_SECONDS
    ]


def _build_patch(status: Mapping[str, Any], fills: list[dict[str, Any]]) -> dict[str, Any] | None:
    if fills == (status.get("fills") or []):
        return None
    slowest = min((fill["percent"] for fill in fills), default=0)
    words = f"{slowest}% on {len(fills)} nodes" if len(fills) > 1 else f"{slowest}%"
    return {
        "fills": sorted(fills, key=lambda fill: str(fill["node"])) or None,
        "filling": words if fills else None,
    }
