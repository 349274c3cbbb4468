"""What the people of a cluster are told of their volumes, behind one Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from csi.parameters.pvc import Claim


@dataclass(frozen=True)
class Subject:
    """The object that people look at: a Pod, a PersistentVolumeClaim or a Node. `kubectl describe` finds by the uid what is said of it."""

    kind: str
    namespace: str
    name: str
    uid: str = ""

    @staticmethod
    def pod(namespace: str, name: str, uid: str) -> Subject | None:
        """A pod, None where it is not named."""
        return Subject("Pod", namespace, name, uid) if namespace and name else None

    @staticmethod
    def claim(claim: Claim | None) -> Subject | None:
        """A PVC, None for none."""
        return Subject("PersistentVolumeClaim", claim.namespace, claim.name, claim.uid) if claim else None

    @staticmethod
    def node(name: str) -> Subject:
        """A node, which is in no namespace; as of kubelet's own Events of it, its name stands for its uid."""
        return Subject("Node", "", name, name)


class Announcer(Protocol):
    """Tells people. No method waits for anybody or raises; what cannot be told is dropped. Thread-safe."""

    def announce(self, subject: Subject, reason: str, message: str, warning: bool = False) -> None:
        """Say `message` of `subject`. What was said before of it for the same `reason` (CamelCase) is replaced, and counted. No secret is in it."""

    def filling(self, volume_id: str, percent: int | None) -> None:
        """Show with the volume how full its image is on this node, None when that fill is over. One that the registry has not is no error."""

    def close(self) -> None:
        """Say nothing more."""


class Silent:
    """Tells nobody: a folder has no people who look at it."""

    def announce(self, subject: Subject, reason: str, message: str, warning: bool = False) -> None:
        """Nothing happens."""

    def filling(self, volume_id: str, percent: int | None) -> None:
        """Nothing happens."""

    def close(self) -> None:
        """Nothing happens."""
