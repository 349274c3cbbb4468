"""Announcers for tests: one that keeps what it was told, and how both kinds are read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csi.cluster.outbox import Outbox
from csi.registry.events.kubernetes import KubernetesEventRecorder
from csi.registry.events.recorder import ObjectReference
from tests.apiserver import VOLUMES, ApiServer


@dataclass(frozen=True)
class Said:
    """One thing that was said, and how often."""

    message: str
    warning: bool = False
    count: int = 1


class FakeAnnouncer:
    """Keeps what it was told, in memory; `volumes` are the ids that its registry has, None for any."""

    def __init__(self, volumes: set[str] | None = None) -> None:
        self._guard = threading.Lock()
        self._said: dict[tuple[ObjectReference, str], Said] = {}
        self._fills: dict[str, int] = {}
        self._volumes, self._closed = volumes, False
        self.history: list[tuple[str, str]] = []
        """(reason, message) of all, in order."""

    def record(self, reference: ObjectReference, reason: str, message: str, warning: bool = False) -> None:
        with self._guard:
            if not self._closed:
                before = self._said.get((reference, reason))
                self._said[(reference, reason)] = Said(message, warning, before.count + 1 if before else 1)
                self.history.append((reason, message))

    def report_fill(self, volume_id: str, percent: int | None) -> None:
        with self._guard:
            if percent is None:
                self._fills.pop(volume_id, None)
            elif not self._closed and (self._volumes is None or volume_id in self._volumes):
                self._fills[volume_id] = percent

    def close(self) -> None:
        self._closed = True

    def said(self, subject: ObjectReference) -> dict[str, Said]:
        """What is said of an object now, by reason."""
        with self._guard:
            return {reason: said for (about, reason), said in self._said.items() if about == subject}

    def fills(self) -> dict[str, int]:
        """The percent of each volume that is shown."""
        with self._guard:
            return dict(self._fills)


class InCluster:
    """An announcer of a cluster, hasty, and what people see of it."""

    def __init__(self, cluster: ApiServer, instance: str = "node-1") -> None:
        self._cluster = cluster
        self.announcer = KubernetesEventRecorder(
            cluster.client(), "datacache-node", instance, Outbox(write_interval=0.0)
        )

    def said(self, subject: ObjectReference) -> dict[str, Said]:
        """What is said of an object now, by reason."""
        return {
            event["reason"]: Said(event["message"], event["type"] == "Warning", event["count"])
            for event in events(self._cluster, subject)
        }

    def fills(self) -> dict[str, int]:
        """The percent of each volume that is shown for this node."""
        found = self._cluster.client().call("GET", VOLUMES)["items"]
        return {
            thing["spec"]["volumeID"]: fill["percent"]
            for thing in found
            for fill in thing.get("status", {}).get("fills", [])
        }


class InMemory:
    """The same over the fake."""

    def __init__(self, volumes: set[str]) -> None:
        self.announcer = FakeAnnouncer(volumes)
        self.said: Callable[[ObjectReference], dict[str, Said]] = self.announcer.said
        self.fills: Callable[[], dict[str, int]] = self.announcer.fills


def events(cluster: ApiServer, subject: ObjectReference) -> list[dict[str, Any]]:
    """The Events that `kubectl describe` finds for an object."""
    about = {"kind": subject.kind, "name": subject.name, "namespace": subject.namespace, "uid": subject.uid}
    selector = ",".join(f"involvedObject.{key}={value}" for key, value in about.items())
    found: list[dict[str, Any]] = cluster.client().call(
        "GET", f"/api/v1/namespaces/{subject.namespace}/events", {"fieldSelector": selector}
    )["items"]
    return found
