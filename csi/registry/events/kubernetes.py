"""Kubernetes Events, and the fills in the status of a CacheVolume.

Source: Kubernetes API reference, core/v1 Event. There is one Event for each object, reason and reporter;
repetitions update it.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from csi.cluster.api_server import MERGE_PATCH, ApiServer, api_path
from csi.cluster.outbox import Outbox
from csi.errors import ClusterConflict, NotFound
from csi.registry.custom_resource import format_time
from csi.registry.events.recorder import EventRecorder, ObjectReference
from csi.registry.volumes.fill_status import FillStatusWriter

# The server limits an Event's message to 1,024 bytes.
_MAX_MESSAGE = 1000
_MAX_REMEMBERED = 1024


@dataclass(frozen=True)
class _RecordedEvent:
    """An Event that exists: its name and its count."""

    name: str
    count: int


class KubernetesEventRecorder(EventRecorder):
    """Recorder of `component` (datacache-node, datacache-controller) on `instance` (the node, or the pod)."""

    def __init__(
        self, server: ApiServer, component: str, instance: str, outbox: Outbox | None = None
    ) -> None:
        self._server, self._component, self._instance = server, component, instance
        self._outbox = outbox or Outbox()
        self._fills = FillStatusWriter(server, instance)
        self._recorded: OrderedDict[tuple[ObjectReference, str], _RecordedEvent] = OrderedDict()

    def record(self, reference: ObjectReference, reason: str, message: str, warning: bool = False) -> None:
        fields = {
            "message": _truncate(message),
            "type": "Warning" if warning else "Normal",
            "lastTimestamp": format_time(time.time()),
        }
        self._outbox.put((reference, reason), lambda: self._write_event(reference, reason, fields))

    def report_fill(self, volume_id: str, percent: int | None) -> None:
        # A finished fill must leave the status, so its report is durable.
        self._outbox.put(volume_id, lambda: self._fills.write(volume_id, percent), durable=percent is None)

    def close(self) -> None:
        """Wait for a write in progress, then drop the others."""
        self._outbox.close()

    def _write_event(self, reference: ObjectReference, reason: str, fields: dict[str, Any]) -> None:
        recorded = self._recorded.pop((reference, reason), None)
        try:
            recorded = (
                self._patch_event(reference, recorded, fields)
                if recorded
                else self._create_event(reference, reason, fields)
            )
        except NotFound:  # the server deletes an Event an hour after its last update
            recorded = self._create_event(reference, reason, fields)
        self._recorded[(reference, reason)] = recorded
        while len(self._recorded) > _MAX_REMEMBERED:
            self._recorded.popitem(last=False)

    def _patch_event(
        self, reference: ObjectReference, recorded: _RecordedEvent, fields: dict[str, Any]
    ) -> _RecordedEvent:
        self._server.call(
            "PATCH",
            f"{_events_path(reference)}/{recorded.name}",
            self._write_query(),
            {**fields, "count": recorded.count + 1},
            MERGE_PATCH,
        )
        return _RecordedEvent(recorded.name, recorded.count + 1)

    def _create_event(
        self, reference: ObjectReference, reason: str, fields: dict[str, Any]
    ) -> _RecordedEvent:
        name = self._event_name(reference, reason)
        try:
            self._server.call(
                "POST",
                _events_path(reference),
                self._write_query(),
                self._build_event(reference, reason, name, fields),
            )
            return _RecordedEvent(name, 1)
        except ClusterConflict:
            # An earlier process recorded it; the answer has its count.
            answer = self._server.call(
                "PATCH", f"{_events_path(reference)}/{name}", self._write_query(), fields, MERGE_PATCH
            )
            return _RecordedEvent(name, int(answer.get("count") or 1))

    def _build_event(
        self, reference: ObjectReference, reason: str, name: str, fields: dict[str, Any]
    ) -> dict[str, Any]:
        involved_object = {"apiVersion": "v1", "kind": reference.kind, "name": reference.name}
        involved_object |= {"namespace": reference.namespace} if reference.namespace else {}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": _event_namespace(reference)},
            "involvedObject": {**involved_object, "uid": reference.uid} if reference.uid else involved_object,
            "reason": reason,
            "firstTimestamp": fields["lastTimestamp"],
            "count": 1,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            **fields,
        }

    def _event_name(self, reference: ObjectReference, reason: str) -> str:
        identity = "\0".join(
            (
                reference.kind,
                reference.namespace,
                reference.name,
                reference.uid,
                reason,
                self._component,
                self._instance,
            )
        )
        return f"{reference.name[:200].rstrip('-.')}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def _write_query(self) -> dict[str, str]:
        return {"fieldManager": self._component}


def _events_path(reference: ObjectReference) -> str:
    return api_path("api", "v1", "namespaces", _event_namespace(reference), "events")


def _event_namespace(reference: ObjectReference) -> str:
    """Return the namespace of an object's Events."""
    return reference.namespace or "default"


def _truncate(message: str) -> str:
    return (
        message
        if len(message.encode()) <= _MAX_MESSAGE
        else message.encode()[:_MAX_MESSAGE].decode(errors="ignore") + " ..."
    )
