"""The duties of the replica that leads: statuses of volumes and pins, and garbage collection.

Every replica answers calls; what would be wasted work twice is done by the holder of one lease. In a module of its own,
since only a cluster has replicas: a controller over a folder does not load what talks to the API server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from csi.cluster.api_server import ApiServer
from csi.cluster.lease import Lease, holder_of, leading
from csi.registry.garbage_collector import SWEEP_SECONDS, Sweeper
from csi.registry.pins.kubernetes import KubernetesPins, PinHolders
from csi.registry.prewarms.kubernetes import PrewarmedNodes
from csi.registry.volumes.fill_status import FillingNodes
from csi.registry.volumes.kubernetes import KubernetesRegistry


class Leader:
    """Keeps the statuses of `registry` and `pins` current and collects their garbage every `interval` seconds, while it leads."""

    def __init__(self, server: ApiServer, registry: KubernetesRegistry, pins: KubernetesPins, interval: float = SWEEP_SECONDS) -> None:
        self._server, self._registry, self._pins, self._interval = server, registry, pins, interval

    @contextmanager
    def campaign(self, lease: str) -> Iterator[None]:
        """Try to hold the lease called `lease` for the block, and do the duties while it is held."""
        with leading(Lease(self._server, lease, holder_of(os.environ)), self._duties):
            yield

    @contextmanager
    def _duties(self) -> Iterator[None]:
        with self._pins.tended(), self.garbage_collector().running(), self._registry.tended():
            yield

    def garbage_collector(self) -> Sweeper:
        """Build the collector of what nodes and volumes that are gone have left in pins, prewarms and statuses."""
        holders = PinHolders(self._pins, lambda volume_id: self._registry.get(volume_id) is not None)
        return Sweeper(self._server, [FillingNodes(self._server), PrewarmedNodes(self._server), holders], self._interval)
