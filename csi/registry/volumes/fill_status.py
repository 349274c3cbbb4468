"""Fills of a volume in the status of its CacheVolume: an entry per filling node, and a summary.

Nodes write the status with the version they have read, so that the summary always matches the entries.
Entries are bounded. Those of interrupted fills are removed by the next write, or by garbage collection.
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
from csi.registry.garbage_collector import NodeReferences
from csi.registry.volumes.codec import PLURAL, object_name

log = logging.getLogger("datacache.fills")

FILL_STATUS_MANAGER = "datacache-node"
MAX_FILLING_NODES = 16
"""Maximum number of nodes shown; further ones fill without being shown."""
FILL_STATUS_KEYS = ("filling", "fills")
_PATH = api_path("apis", GROUP, VERSION, PLURAL)
# A fill not updated for this long was interrupted.
_STALE_FILL_SECONDS = 120.0


class FillStatusWriter:
    """Writer of the fills of `node`. Used by one thread."""

    def __init__(self, server: ApiServer, node: str) -> None:
        self._server, self._node = server, node
        self._last_seen: dict[str, Mapping[str, Any]] = {}

    def write(self, volume_id: str, percent: int | None) -> None:
        """Write how full the image of a volume is, None when the fill is over (EventRecorder.report_fill).

        Takes one call if nobody else writes concurrently, else three. Raises ClusterConflict and as
        `ApiServer.call`.
        """
        path, seen = f"{_PATH}/{object_name(volume_id)}", self._last_seen.pop(volume_id, None)
        try:
            # Usually nobody else has written since: patch the last seen version without reading the object.
            written = self._patch_status(path, seen, percent) if seen else None
        except (NotFound, ClusterConflict):
            written = None
        try:
            written = written or self._patch_status(path, self._server.call("GET", path), percent)
        except NotFound:  # a deleted volume, or a static PV
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


class FillReferences(NodeReferences):
    """Nodes in the status of CacheVolumes.

    A fill not updated for two minutes is removed, whether its node exists or not.
    """

    kind = "CacheVolume"

    def __init__(self, server: ApiServer, clock: Callable[[], float] = time.time) -> None:
        self._server, self._clock = server, clock
        self._objects: list[Mapping[str, Any]] = []

    def list_nodes(self) -> frozenset[str]:
        objects = (obj for page in list_pages(self._server, _PATH) for obj in page["items"])
        self._objects = [obj for obj in objects if obj.get("status", {}).get("fills")]
        return frozenset(fill["node"] for obj in self._objects for fill in obj["status"]["fills"])

    def remove_stale(self, gone: frozenset[str]) -> None:
        for obj in self._objects:
            patch = patch_without_nodes(obj["status"], gone, self._clock())
            if patch:
                meta = obj["metadata"]
                log.info(
                    "fills removed from status",
                    extra={"fields": {"volume": meta["name"], "remaining": patch["filling"] or "none"}},
                )
                body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
                with suppress(NotFound, ClusterConflict):  # a changed object is handled in the next round
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
    """Build the merge patch of `status` that shows how full the image is on `node`; None if nothing changes.

    `now` is in seconds since 1970.
    """
    fills = _fills_of_others(status, {node}, now)
    if percent is not None and len(fills) < MAX_FILLING_NODES:
        fills.append({"node": node, "percent": percent, "updated": format_time(now)})
    return _build_patch(status, fills)


def patch_without_nodes(status: Mapping[str, Any], gone: Set[str], now: float) -> dict[str, Any] | None:
    """Build the merge patch of `status` that removes the nodes `gone`; None if nothing changes."""
    return _build_patch(status, _fills_of_others(status, gone, now))


def _fills_of_others(status: Mapping[str, Any], excluded: Set[str], now: float) -> list[dict[str, Any]]:
    """Return the entries of other nodes, without those of interrupted fills."""
    return [
        fill
        for fill in status.get("fills") or []
        if fill["node"] not in excluded and now - parse_time(fill["updated"]) < _STALE_FILL_SECONDS
    ]


def _build_patch(status: Mapping[str, Any], fills: list[dict[str, Any]]) -> dict[str, Any] | None:
    if fills == (status.get("fills") or []):
        return None
    slowest = min((fill["percent"] for fill in fills), default=0)
    summary = f"{slowest}% on {len(fills)} nodes" if len(fills) > 1 else f"{slowest}%"
    return {
        "fills": sorted(fills, key=lambda fill: str(fill["node"])) or None,
        "filling": summary if fills else None,
    }
