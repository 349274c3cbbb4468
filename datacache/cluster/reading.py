"""What the cluster's doctor reads: lists of objects, each asked for once, and what is said of them in Events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from csi.cluster.api_server import ApiServer, api_path
from csi.cluster.watch import list_pages
from csi.errors import ClusterForbids, FailedPrecondition, NotFound

KubeObject = Mapping[str, Any]
_PAGE_SIZE = 500


@dataclass(frozen=True)
class ClusterEvent:
    """What somebody has said of an object; `when` is ISO 8601."""

    reason: str
    message: str
    when: str

    @property
    def summary(self) -> str:
        """Both, as kubectl shows them."""
        return f"{self.reason}: {self.message}"


class ClusterReader:
    """Objects of the cluster of `server`; a list is asked for once. All raise as `ApiServer.call`."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self._lists: dict[tuple[str, str, str], list[KubeObject]] = {}
        self._said: dict[str, dict[str, list[ClusterEvent]]] = {}

    def list_objects(self, *path: str, labels: str = "", fields: str = "") -> list[KubeObject]:
        """The objects of a collection, which `path` names from the root on, by selectors; none where the cluster does not know it."""
        key = (api_path(*path), labels, fields)
        if key not in self._lists:
            try:
                self._lists[key] = [
                    thing
                    for page in list_pages(self.server, key[0], labels, _PAGE_SIZE, fields=fields)
                    for thing in page["items"]
                ]
            except ClusterForbids:
                raise
            except (NotFound, FailedPrecondition):
                self._lists[key] = []
        return self._lists[key]

    def get_object(self, *path: str) -> KubeObject | None:
        """An object, None where it is not there."""
        try:
            return self.server.call("GET", api_path(*path))
        except NotFound:
            return None

    def list_warnings(self, about: KubeObject, kind: str) -> list[ClusterEvent]:
        """The Warnings about an object of that kind, the newest first. Those of all objects of a kind are asked for at once."""
        if kind not in self._said:
            said: dict[str, list[ClusterEvent]] = {}
            for thing in self.list_objects(
                "api", "v1", "events", fields=f"type=Warning,involvedObject.kind={kind}"
            ):
                said.setdefault(thing["involvedObject"].get("uid", ""), []).append(_decode_event(thing))
            self._said[kind] = said
        meta = about["metadata"]
        # kubelet and this driver have a node's name for its uid in what they say of it.
        found = [
            event
            for uid in {meta["uid"], meta["name"] if kind == "Node" else meta["uid"]}
            for event in self._said[kind].get(uid, ())
        ]
        return sorted(found, key=lambda event: event.when, reverse=True)

    def describe_warnings(self, about: KubeObject, kind: str, reason: str = "") -> str:
        """The message of the newest Warning about an object, of a `reason` where one is given; "" for none."""
        return next(
            (event.message for event in self.list_warnings(about, kind) if reason in ("", event.reason)), ""
        )


def _decode_event(thing: KubeObject) -> ClusterEvent:
    times = (
        (thing.get("series") or {}).get("lastObservedTime"),
        thing.get("lastTimestamp"),
        thing.get("eventTime"),
    )
    when = next(filter(None, times), thing["metadata"].get("creationTimestamp", ""))
    return ClusterEvent(thing.get("reason") or "", (thing.get("message") or "").strip(), when)


def qualified_name(thing: KubeObject) -> str:
    """An object as people write it: namespace/name, or the name."""
    meta = thing["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def parse_seconds(text: str) -> float:
    """A time of Kubernetes (RFC 3339) in seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def has_condition(thing: KubeObject, kind: str, status: str = "True") -> bool:
    """Whether a condition of that type has that status."""
    return any(
        one["type"] == kind and one["status"] == status
        for one in thing.get("status", {}).get("conditions") or ()
    )


def get_labels(thing: KubeObject) -> Mapping[str, str]:
    """The labels of an object."""
    found: Mapping[str, str] = thing["metadata"].get("labels") or {}
    return found


def format_count(count: int, what: str) -> str:
    """A count in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"
