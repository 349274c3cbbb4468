"""What the people of a cluster are told of their volumes, behind one Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from csi.parameters.pvc import PvcReference


@dataclass(frozen=True)
class ObjectReference:
    """The object that people look at: a Pod, a PersistentVolumeClaim or a Node. `kubectl describe` finds by the uid what is said of it."""

    kind: str
    namespace: str
    name: str
    uid: str = ""

    @staticmethod
    def for_pod(namespace: str, name: str, uid: str) -> ObjectReference | None:
        """A pod, None where it is not named."""
        return ObjectReference("Pod", namespace, name, uid) if namespace and name else None

    @staticmethod
    def for_pvc(pvc: PvcReference | None) -> ObjectReference | None:
        """A PVC, None for none."""
        return ObjectReference("PersistentVolumeClaim", pvc.namespace, pvc.name, pvc.uid) if pvc else None

    @staticmethod
    def for_node(name: str) -> ObjectReference:
        """A node, which is in no namespace; as of kubelet's own Events of it, its name stands for its uid."""
        return ObjectReference("Node", "", name, name)


class EventRecorder(Protocol):
    """Tells people. No method waits for anybody or raises; what cannot be told is dropped. Thread-safe."""

    def record(self, reference: ObjectReference, reason: str, message: str, warning: bool = False) -> None:
        """Say `message` of `reference`. What was said before of it for the same `reason` (CamelCase) is replaced, and counted. No secret is in it."""

    def report_fill(self, volume_id: str, percent: int | None) -> None:
        """Show with the volume how full its image is on this node, None when that fill is over. One that the registry has not is no error."""

    def close(self) -> None:
        """Say nothing more."""


class NullEventRecorder:
    """Tells nobody: a folder has no people who look at it."""

    def record(self, reference: ObjectReference, reason: str, message: str, warning: bool = False) -> None:
        """Nothing happens."""

    def report_fill(self, volume_id: str, percent: int | None) -> None:
        """Nothing happens."""

    def close(self) -> None:
        """Nothing happens."""
