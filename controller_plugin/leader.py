"""Duties of the leading replica: statuses of volumes and pins, and garbage collection.

All replicas answer calls; work that would be wasted if done twice is done by the holder of a lease. This is a
separate module because only a cluster has replicas: a controller over a folder does not load the API client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from csi.cluster.api_server import ApiServer
from csi.cluster.lease import Lease, holder_identity, leader_election
from csi.registry.garbage_collector import GARBAGE_COLLECTION_INTERVAL, GarbageCollector
from csi.registry.pins.kubernetes import KubernetesPinRegistry, PinHolderReferences
from csi.registry.prewarms.kubernetes import PrewarmReferences
from csi.registry.volumes.fill_status import FillReferences
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry


class Leader:
    """Work of the leader: statuses of `registry` and `pins`, and garbage collection.

    Garbage is collected every `interval` seconds.
    """

    def __init__(
        self,
        server: ApiServer,
        registry: KubernetesVolumeRegistry,
        pins: KubernetesPinRegistry,
        interval: float = GARBAGE_COLLECTION_INTERVAL,
    ) -> None:
        self._server, self._registry, self._pins, self._interval = server, registry, pins, interval

    @contextmanager
    def campaign(self, lease: str) -> Iterator[None]:
        """Try to hold the lease called `lease` during the block, and do the duties while it is held."""
        with leader_election(Lease(self._server, lease, holder_identity(os.environ)), self._leader_duties):
            yield

    @contextmanager
    def _leader_duties(self) -> Iterator[None]:
        with (
            self._pins.maintain_statuses(),
            self.build_garbage_collector().run_in_background(),
            self._registry.maintain_statuses(),
        ):
            yield

    def build_garbage_collector(self) -> GarbageCollector:
        """Build the collector of what deleted nodes and volumes left in pins, prewarms and statuses."""
        holders = PinHolderReferences(self._pins, lambda volume_id: self._registry.get(volume_id) is not None)
        return GarbageCollector(
            self._server,
            [FillReferences(self._server), PrewarmReferences(self._server), holders],
            self._interval,
        )
