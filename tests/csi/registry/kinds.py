"""What the tests of registries share: the kinds, a record, a watcher."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from csi.registry.volumes.record import VolumeRecord, VolumeRegistry
from tests.apiserver import ApiServer

Make = Callable[[Path], VolumeRegistry]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class InCluster:
    """Makes registries in one cluster: a folder that is not the last one stands for a registry of its own,
    which is empty."""

    def __init__(self, cluster: ApiServer) -> None:
        self._cluster, self._folder = cluster, Path()

    def __call__(self, folder: Path) -> VolumeRegistry:
        """The registry that `folder` stands for."""
        if folder != self._folder:
            self._folder = folder
            self._cluster.forget_volumes()
        return KubernetesVolumeRegistry(self._cluster.client())


def record(volume_id: str, **more: object) -> VolumeRecord:
    """A volume of a hub, pinned, with `more` in place of what it has."""
    asked = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main", ("*.json", "a,b"), ()))
    pinned = CacheSpec(HubSpec("HuggingFace/Model", "org/name", COMMIT, ("*.json", "a,b"), ()))
    base = {
        "name": f"pvc-{volume_id}"[:128],
        "requested_spec": asked,
        "spec": pinned,
        "digest": "a" * 64,
        "capacity_bytes": 2**30,
        "content_bytes": 5,
    }
    return VolumeRecord(id=volume_id, **{**base, **more})  # type: ignore[arg-type]


class Told:
    """What a watcher was called with; `next` waits for it, `fault` is raised once by the call."""

    def __init__(self) -> None:
        self.calls: queue.Queue[str] = queue.Queue()
        self.threads: set[int] = set()
        self.fault: Exception | None = None

    def __call__(self, volume_id: str) -> None:
        self.threads.add(threading.get_ident())
        self.calls.put(volume_id)
        fault, self.fault = self.fault, None
        if fault:
            raise fault

    def until(self, volume_id: str) -> set[str]:
        """All that was told until `volume_id` was; raises queue.Empty after half a minute of silence."""
        told = {self.calls.get(timeout=30)}
        while volume_id not in told:
            told.add(self.calls.get(timeout=30))
        return told

    @property
    def silent(self) -> bool:
        return self.calls.empty()
