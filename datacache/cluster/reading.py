"""What the cluster's doctor reads: lists of objects, each asked for once, and what is said of them in Events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from csi.cluster.api_server import ApiServer, path_of
from csi.cluster.watch import pages
from csi.errors import ClusterForbids, FailedPrecondition, NotFound

Thing = Mapping[str, Any]
_MANY = 500


@dataclass(frozen=True)
class Event:
    """What somebody has said of an object; `when` is ISO 8601."""

    reason: str
    message: str
    when: str

    @property
    def words(self) -> str:
        """Both, as kubectl shows them."""
        return f"{self.reason}: {self.message}"


class Reading:
    """Objects of the cluster of `server`; a list is asked for once. All raise as `ApiServer.call`."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self._lists: dict[tuple[str, str, str], list[Thing]] = {}
        self._said: dict[str, dict[str, list[Event]]] = {}

    def all(self, *path: str, labels: str = "", fields: str = "") -> list[Thing]:
        """The objects of a collection, which `path` names from the root on, by selectors; none where the cluster does not know it."""
        key = (path_of(*path), labels, fields)
        if key not in self._lists:
            try:
                self._lists[key] = [thing for page in pages(self.server, key[0], labels, _MANY, fields=fields) for thing in page["items"]]
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

    def warnings(self, about: Thing, kind: str) -> list[Event]:
        """The Warnings about an object of that kind, the newest first. Those of all objects of a kind are asked for at once."""
        if kind not in self._said:
            said: dict[str, list[Event]] = {}
            for thing in self.all("api", "v1", "events", fields=f"type=Warning,involvedObject.kind={kind}"):
                said.setdefault(thing["involvedObject"].get("uid", ""), []).append(_event(thing))
            self._said[kind] = said
        meta = about["metadata"]
        # kubelet and this driver have a node's name for its uid in what they say of it.
        found = [event for uid in {meta["uid"], meta["name"] if kind == "Node" else meta["uid"]} for event in self._said[kind].get(uid, ())]
        return sorted(found, key=lambda event: event.when, reverse=True)

    def said(self, about: Thing, kind: str, reason: str = "") -> str:
        """The message of the newest Warning about an object, of a `reason` where one is given; "" for none."""
        return next((event.message for event in self.warnings(about, kind) if reason in ("", event.reason)), "")


def _event(thing: Thing) -> Event:
    times = ((thing.get("series") or {}).get("lastObservedTime"), thing.get("lastTimestamp"), thing.get("eventTime"))
    when = next(filter(None, times), thing["metadata"].get("creationTimestamp", ""))
    return Event(thing.get("reason") or "", (thing.get("message") or "").strip(), when)


def name_of(thing: Thing) -> str:
    """An object as people write it: namespace/name, or the name."""
    meta = thing["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def seconds(text: str) -> float:
    """A time of Kubernetes (RFC 3339) in seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def has_condition(thing: Thing, kind: str, status: str = "True") -> bool:
    """Whether a condition of that type has that status."""
    return any(one["type"] == kind and one["status"] == status for one in thing.get("status", {}).get("conditions") or ())


def labels_of(thing: Thing) -> Mapping[str, str]:
    """The labels of an object."""
    found: Mapping[str, str] = thing["metadata"].get("labels") or {}
    return found


def plural(count: int, what: str) -> str:
    """A count in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"
