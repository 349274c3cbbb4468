"""Reader of a cluster's objects for the doctor: lists, each requested once, and Warnings from Events."""

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
    """Event of an object; `when` is ISO 8601."""

    reason: str
    message: str
    when: str

    @property
    def summary(self) -> str:
        """Reason and message, as kubectl shows them."""
        return f"{self.reason}: {self.message}"


class ClusterReader:
    """Reader of a cluster that requests each list once. All methods raise as `ApiServer.call`."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self._lists: dict[tuple[str, str, str], list[KubeObject]] = {}
        self._warnings: dict[str, dict[str, list[ClusterEvent]]] = {}

    def list_objects(self, *path: str, labels: str = "", fields: str = "") -> list[KubeObject]:
        """List the objects of a collection by selectors; `path` names it from the API's root.

        The list is empty if the cluster does not know the collection.
        """
        key = (api_path(*path), labels, fields)
        if key not in self._lists:
            try:
                self._lists[key] = [
                    obj
                    for page in list_pages(self.server, key[0], labels, _PAGE_SIZE, fields=fields)
                    for obj in page["items"]
                ]
            except ClusterForbids:
                raise
            except (NotFound, FailedPrecondition):
                self._lists[key] = []
        return self._lists[key]

    def get_object(self, *path: str) -> KubeObject | None:
        """Return an object, or None."""
        try:
            return self.server.call("GET", api_path(*path))
        except NotFound:
            return None

    def list_warnings(self, about: KubeObject, kind: str) -> list[ClusterEvent]:
        """List the Warnings about an object of that kind, newest first.

        The Warnings of all objects of a kind are requested at once.
        """
        if kind not in self._warnings:
            warnings: dict[str, list[ClusterEvent]] = {}
            for event_object in self.list_objects(
                "api", "v1", "events", fields=f"type=Warning,involvedObject.kind={kind}"
            ):
                warnings.setdefault(event_object["involvedObject"].get("uid", ""), []).append(
                    _decode_event(event_object)
                )
            self._warnings[kind] = warnings
        meta = about["metadata"]
        # In Events of kubelet and this driver, a node's uid is its name.
        events = [
            event
            for uid in {meta["uid"], meta["name"] if kind == "Node" else meta["uid"]}
            for event in self._warnings[kind].get(uid, ())
        ]
        return sorted(events, key=lambda event: event.when, reverse=True)

    def describe_warnings(self, about: KubeObject, kind: str, reason: str = "") -> str:
        """Return the message of the newest Warning about an object, of `reason` if given; "" for none."""
        return next(
            (event.message for event in self.list_warnings(about, kind) if reason in ("", event.reason)), ""
        )


def _decode_event(obj: KubeObject) -> ClusterEvent:
    times = (
        (obj.get("series") or {}).get("lastObservedTime"),
        obj.get("lastTimestamp"),
        obj.get("eventTime"),
    )
    when = next(filter(None, times), obj["metadata"].get("creationTimestamp", ""))
    return ClusterEvent(obj.get("reason") or "", (obj.get("message") or "").strip(), when)


def qualified_name(obj: KubeObject) -> str:
    """Return namespace/name of an object, or the name if it has no namespace."""
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def parse_seconds(text: str) -> float:
    """Parse a time of Kubernetes (RFC 3339) into seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def has_condition(obj: KubeObject, kind: str, status: str = "True") -> bool:
    """Return whether the condition of a type has a status."""
    return any(
        condition["type"] == kind and condition["status"] == status
        for condition in obj.get("status", {}).get("conditions") or ()
    )


def get_labels(obj: KubeObject) -> Mapping[str, str]:
    """Return the labels of an object."""
    labels: Mapping[str, str] = obj["metadata"].get("labels") or {}
    return labels


def format_count(count: int, what: str) -> str:
    """Format a count with its noun, in the plural unless it is 1."""
    return f"{count} {what}{'' if count == 1 else 's'}"
