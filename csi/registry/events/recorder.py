"""Protocol for reporting events of volumes to the people of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from csi.parameters.pvc import PvcReference


@dataclass(frozen=True)
class ObjectReference:
    """Object of an Event: a Pod, a PersistentVolumeClaim or a Node.

    `kubectl describe` finds Events by its uid.
    """

    kind: str
    namespace: str
    name: str
    uid: str = ""

    @staticmethod
    def for_pod(namespace: str, name: str, uid: str) -> ObjectReference | None:
        """Return the reference of a pod, None if its name is unknown."""
        return ObjectReference("Pod", namespace, name, uid) if namespace and name else None

    @staticmethod
    def for_pvc(pvc: PvcReference | None) -> ObjectReference | None:
        """Return the reference of a PVC, None without one."""
        return ObjectReference("PersistentVolumeClaim", pvc.namespace, pvc.name, pvc.uid) if pvc else None

    @staticmethod
    def for_node(name: str) -> ObjectReference:
        """Return the reference of a node, which has no namespace.

        As in kubelet's own Events, its name is used as the uid.
        """
        return ObjectReference("Node", "", name, name)


class EventRecorder(Protocol):
    """Recorder of events.

    No method waits or raises; events that cannot be written are dropped. Thread-safe.
    """

    def record(self, reference: ObjectReference, reason: str, message: str, warning: bool = False) -> None:
        """Record `message` for an object.

        It replaces an earlier one with the same `reason` (CamelCase) and increments its count. It must hold
        no secret.
        """

    def report_fill(self, volume_id: str, percent: int | None) -> None:
        """Show in the volume's status how full its image is on this node; None ends the fill.

        Unknown volumes are no error.
        """

    def close(self) -> None:
        """Write nothing more."""


class NullEventRecorder(EventRecorder):
    """Recorder that does nothing, for a folder registry."""

    def record(self, reference: ObjectReference, reason: str, message: str, warning: bool = False) -> None:
        pass

    def report_fill(self, volume_id: str, percent: int | None) -> None:
        pass

    def close(self) -> None:
        pass
