"""Prewarm requests, for caches that nodes fill before any pod needs them, as a node sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from csi.registry.volumes.record import VolumeRecord


@dataclass(frozen=True)
class PrewarmedCache:
    """Cache to prewarm: `parameters`, the PVC `pvc_name`, or the DataCache object `data_cache`.

    `parameters` are as in an inline volume. A DataCache is uploaded to the image store too; `digest` is the
    image it must have, "" for any. `secret_name` is the name of the credential's Secret, "" for none.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    pvc_name: str = ""
    secret_name: str = ""
    data_cache: str = ""
    digest: str = ""


@dataclass(frozen=True)
class PrewarmRequest:
    """Prewarm request in `namespace`; another `uid` or `generation` is another request.

    `selector` has the labels a node must have.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    caches: tuple[PrewarmedCache, ...]
    selector: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name in the cluster: namespace/name."""
        return f"{self.namespace}/{self.name}"

    def selects_node(self, labels: Mapping[str, str]) -> bool:
        """Return whether a node with these labels must fill the caches."""
        return all(labels.get(key) == value for key, value in self.selector.items())


class PrewarmState(StrEnum):
    """State of all caches of a request on one node."""

    PENDING = "Pending"
    FILLING = "Filling"
    STORING = "Storing"
    READY = "Ready"
    FAILED = "Failed"


@dataclass(frozen=True)
class NodePrewarmState:
    """What a node says: how much of all caches is there, and what it waits for or fails with.

    No secret is in the message.
    """

    state: PrewarmState
    percent: int = 0
    message: str = ""


class NodePrewarms(Protocol):
    """Prewarm requests as one node sees them.

    Thread-safe. All but `watch` and `report_state` raise ClusterUnavailable and ClusterForbids.
    """

    def list_requests(self) -> list[PrewarmRequest]:
        """Return all requests of the cluster that can be read."""

    def watch(self, on_change: Callable[[str], None]) -> AbstractContextManager[None]:
        """Call `on_change(name)` from another thread during the block, soon after a request changed.

        It was created, deleted, or changed in its spec. The namespace is not part of the name.
        """

    def read_node_labels(self) -> Mapping[str, str]:
        """Return the labels of this node."""

    def read_secret(self, namespace: str, name: str) -> Mapping[str, str]:
        """Return the values of a Secret; raises FailedPrecondition if it is missing or not text."""

    def get_volume_of_pvc(self, namespace: str, pvc_name: str) -> VolumeRecord:
        """Return the volume of a PVC; raises FailedPrecondition if it has none of this driver."""

    def report_state(self, prewarm: PrewarmRequest, state: NodePrewarmState | None) -> None:
        """Show this node's state in the request, or with None remove it. Never waits or raises."""

    def close(self) -> None:
        """Report nothing more."""
