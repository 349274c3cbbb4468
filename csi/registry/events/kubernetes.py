"""Telling people in a cluster: Events, and the fills in the status of a CacheVolume.

Source: Kubernetes API reference, core/v1 Event. An Event of ours is one for each object, reason and who says it, and is written
anew in place of adding others.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from csi.cluster.api_server import MERGE, ApiServer, path_of
from csi.cluster.outbox import Outbox
from csi.errors import ClusterConflict, NotFound
from csi.registry.custom_resource import written
from csi.registry.events.recorder import Subject
from csi.registry.volumes.fill_status import FillStatus

# Of an Event's message the server takes 1,024 bytes.
_LONGEST_MESSAGE = 1000
_MOST_KNOWN = 1024


@dataclass(frozen=True)
class _Kept:
    """An Event that is there: its name and how often it was said."""

    name: str
    count: int


class KubernetesAnnouncer:
    """Says what `component` (datacache-node, datacache-controller) on `instance` (the node, or the pod) has to say."""

    def __init__(self, server: ApiServer, component: str, instance: str, outbox: Outbox | None = None) -> None:
        self._server, self._component, self._instance = server, component, instance
        self._outbox = outbox or Outbox()
        self._fills = FillStatus(server, instance)
        self._known: OrderedDict[tuple[Subject, str], _Kept] = OrderedDict()

    def announce(self, subject: Subject, reason: str, message: str, warning: bool = False) -> None:
        """See Announcer."""
        said = {"message": _cut(message), "type": "Warning" if warning else "Normal", "lastTimestamp": written(time.time())}
        self._outbox.put((subject, reason), lambda: self._say(subject, reason, said))

    def filling(self, volume_id: str, percent: int | None) -> None:
        """See Announcer."""
        self._outbox.put(volume_id, lambda: self._fills.write(volume_id, percent), lasting=percent is None)

    def close(self) -> None:
        """See Announcer; a write under way ends first."""
        self._outbox.close()

    def _say(self, subject: Subject, reason: str, said: dict[str, Any]) -> None:
        kept = self._known.pop((subject, reason), None)
        try:
            kept = self._said_again(subject, kept, said) if kept else self._said_first(subject, reason, said)
        except NotFound:  # an Event lives for an hour after it was said last
            kept = self._said_first(subject, reason, said)
        self._known[(subject, reason)] = kept
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def _said_again(self, subject: Subject, kept: _Kept, said: dict[str, Any]) -> _Kept:
        self._server.call("PATCH", f"{_events(subject)}/{kept.name}", self._query(), {**said, "count": kept.count + 1}, MERGE)
        return _Kept(kept.name, kept.count + 1)

    def _said_first(self, subject: Subject, reason: str, said: dict[str, Any]) -> _Kept:
        name = self._name(subject, reason)
        try:
            self._server.call("POST", _events(subject), self._query(), self._event(subject, reason, name, said))
            return _Kept(name, 1)
        except ClusterConflict:
            # An earlier start of this program said it; the answer tells how often.
            answer = self._server.call("PATCH", f"{_events(subject)}/{name}", self._query(), said, MERGE)
            return _Kept(name, int(answer.get("count") or 1))

    def _event(self, subject: Subject, reason: str, name: str, said: dict[str, Any]) -> dict[str, Any]:
        about = {"apiVersion": "v1", "kind": subject.kind, "name": subject.name}
        about |= {"namespace": subject.namespace} if subject.namespace else {}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": _namespace(subject)},
            "involvedObject": {**about, "uid": subject.uid} if subject.uid else about,
            "reason": reason,
            "firstTimestamp": said["lastTimestamp"],
            "count": 1,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            **said,
        }

    def _name(self, subject: Subject, reason: str) -> str:
        whole = "\0".join((subject.kind, subject.namespace, subject.name, subject.uid, reason, self._component, self._instance))
        return f"{subject.name[:200].rstrip('-.')}.{hashlib.sha256(whole.encode()).hexdigest()[:16]}"

    def _query(self) -> dict[str, str]:
        return {"fieldManager": self._component}


def _events(subject: Subject) -> str:
    return path_of("api", "v1", "namespaces", _namespace(subject), "events")


def _namespace(subject: Subject) -> str:
    """Where its Events are."""
    return subject.namespace or "default"


def _cut(message: str) -> str:
    return message if len(message.encode()) <= _LONGEST_MESSAGE else message.encode()[:_LONGEST_MESSAGE].decode(errors="ignore") + " ..."
