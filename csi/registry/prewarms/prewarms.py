"""Caches that nodes are to have before any pod asks for them, and the Protocol of whoever knows which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from csi.registry.volumes.record import VolumeRecord


@dataclass(frozen=True)
class PrewarmedCache:
    """One cache: `parameters` as an inline volume has them, or what the PVC `pvc_name` holds, or the DataCache whose object is `data_cache`,
    which goes to the image store too; of that `digest` is the image that it has to hold, "" for any. `secret_name` is the name of its Secret, "" for
    none."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    pvc_name: str = ""
    secret_name: str = ""
    data_cache: str = ""
    digest: str = ""


@dataclass(frozen=True)
class PrewarmRequest:
    """An object of `namespace`; another `uid` or `generation` is another order. `selector` has the labels that a node must have."""

    namespace: str
    name: str
    uid: str
    generation: int
    caches: tuple[PrewarmedCache, ...]
    selector: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name in the cluster: namespace/name."""
        return f"{self.namespace}/{self.name}"

    def selects_node(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is to have the caches."""
        return all(labels.get(key) == value for key, value in self.selector.items())


class PrewarmState(StrEnum):
    """How far a node is with all caches of an object."""

    PENDING = "Pending"
    FILLING = "Filling"
    STORING = "Storing"
    READY = "Ready"
    FAILED = "Failed"


@dataclass(frozen=True)
class NodePrewarmState:
    """What a node says: how much of all caches is there, and what it waits for or fails with. No secret is in the message."""

    state: PrewarmState
    percent: int = 0
    message: str = ""


class NodePrewarms(Protocol):
    """What one node is to have. Thread-safe. But for `watch` and `report_state` all raise ClusterUnavailable and ClusterForbids."""

    def list_requests(self) -> list[PrewarmRequest]:
        """All objects of the cluster that can be read."""

    def watch(self, on_change: Callable[[str], None]) -> AbstractContextManager[None]:
        """For the block, call `on_change(name)` from another thread soon after an object of that name, in whatever namespace, was made, changed
        in its spec, or removed."""

    def read_node_labels(self) -> Mapping[str, str]:
        """The labels of this node."""

    def read_secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """The values of a Secret; raises FailedPrecondition where it is not there or no text."""

    def get_volume_of_pvc(self, namespace: str, pvc_name: str) -> VolumeRecord:
        """The volume of a PVC; raises FailedPrecondition where that has none of this driver's."""

    def report_state(self, prewarm: PrewarmRequest, state: NodePrewarmState | None) -> None:
        """Show with the object how far this node is, None where it is not to have the caches. Never waits or raises."""

    def close(self) -> None:
        """Report nothing more."""
