"""What the cluster's doctor reads: lists of objects, each asked for once, and what their owners say of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from csi.cluster.api_server import ApiServer, path_of
from csi.cluster.watch import pages
from csi.errors import ClusterForbids, FailedPrecondition, NotFound

Thing = Mapping[str, Any]
_MANY = 500


class Reading:
    """Objects of the cluster of `server`; a list is asked for once. All raise as `ApiServer.call`."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self._lists: dict[tuple[str, str], list[Thing]] = {}

    def all(self, *path: str, selector: str = "") -> list[Thing]:
        """The objects of a collection, which `path` names from the root on; none where the cluster does not know it."""
        key = (path_of(*path), selector)
        if key not in self._lists:
            try:
                self._lists[key] = [thing for page in pages(self.server, key[0], selector, _MANY) for thing in page["items"]]
            except ClusterForbids:
                raise
            except (NotFound, FailedPrecondition):
                self._lists[key] = []
        return self._lists[key]

    def one(self, *path: str) -> Thing | None:
        """An object, None where it is not there."""
        try:
            return self.server.call("GET", path_of(*path))
        except NotFound:
            return None

    def last_warning(self, namespace: str, uid: str, reason: str = "") -> str:
        """The message of the newest Warning about an object, of a `reason` where one is given; "" for none."""
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        events = self.server.call("GET", path_of("api", "v1", "namespaces", namespace, "events"), query)["items"]
        fitting = [event for event in events if event.get("type") == "Warning" and reason in ("", event.get("reason"))]
        newest = max(fitting, key=_when, default=None)
        return f"{newest.get('reason')}: {newest.get('message', '')}" if newest else ""


def _when(event: Thing) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", ""))


def name_of(thing: Thing) -> str:
    """An object as people write it: namespace/name, or the name."""
    meta = thing["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def why_not_ready(pod: Thing) -> str:
    """What keeps a pod from being ready, in its own words; "" where it is ready."""
    status = pod.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    if conditions.get("Ready", {}).get("status") == "True":
        return ""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            ended = container.get("lastState", {}).get("terminated", {}).get("message", "").strip()
            last = ended or waiting.get("message", "")
            return f"{waiting.get('reason')}{f': {last[-400:]}' if last else ''}"
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason')}: {scheduled.get('message', '')}"
    return f"its phase is {status.get('phase', 'unknown')} and it is not ready"


@cache
def plural(count: int, what: str) -> str:
    """A count in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"
