"""A node plugin's volumes over a fake kernel and a scripted source; everything else is real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import AllowList
from csi.errors import UnsupportedByNode
from csi.images.node_store.store import Store
from csi.linux.cgroups.pod_cgroups import walk_folders
from csi.parameters.access_modes import AccessMode
from csi.parameters.content_ref import Secrets
from csi.registry.pins.pins import PinRegistry
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.worker.pool import WorkerPool
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.fill_runner import FillRunner
from node_plugin.fills.fills import Fills, ProtectedImages
from node_plugin.fills.verification import OriginVerification
from node_plugin.throttle.records import GroupRecords
from node_plugin.throttle.throttle import Throttle
from node_plugin.volumes.data_cache_grants import DataCacheGrants
from node_plugin.volumes.exposures import VolumeExposures
from node_plugin.volumes.image_mounts import ImageMounts
from node_plugin.volumes.limits import PerformanceLookup
from node_plugin.volumes.mount_request import MountRequest
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.preparation import VolumePreparation
from node_plugin.volumes.records import VolumeRecords
from node_plugin.volumes.recovery import NodeRecovery
from node_plugin.volumes.volumes import NodeVolumes
from tests.csi.linux.cgroups.fakes import FakeHierarchy
from tests.csi.linux.fakes import FakeKernel, FakeLoops, FakeMounts
from tests.csi.registry.events.recorders import FakeAnnouncer
from tests.csi.worker.in_process import InProcess

MIB = 2**20
HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name", "revision": "a" * 40}
INLINE = {**HUB, "csi.storage.k8s.io/ephemeral": "true"}
READER = AccessMode.MULTI_NODE_READER_ONLY


class Node:
    """One start of the plugin over `folder`; a second Node over the same folder is the next start.

    `source` is shared by name, not by state.
    """

    def __init__(
        self,
        folder: Path,
        *,
        budget: int = 100 * MIB,
        grace: float = 300.0,
        seats: int = 9,
        nas: tuple[str, ...] = (),
        unthrottled: bool = False,
        require_throttle: bool = False,
        pins: PinRegistry | None = None,
        name: str = "node-a",
        told_after: float = 5.0,
    ) -> None:
        self.folder, self.source = folder, InProcess()
        self.now = 1000.0
        """What the clock of the pins shows."""
        self.kernel = FakeKernel(folder / "kernel.json")
        self.mounts, self.loops = FakeMounts(self.kernel), FakeLoops(self.kernel)
        self.store = Store(folder / "store", budget)
        self.room = WaitLimiter(seats)
        self.not_ready: Exception | None = None
        self.images = ImageMounts(folder / "mounts", self.mounts, self.loops, self._ready)
        self.announcer = FakeAnnouncer()
        self.events = FillEvents(self.announcer, told_after, 2 * told_after)
        self.protected = ProtectedImages(self.images.list_in_use)
        pool = cast(WorkerPool, self.source)
        self.fills = Fills(
            self.store, FillRunner(self.store, pool, 1), self.room, self.protected, grace, self.events
        )
        self.verification = OriginVerification(self.store, pool, self.room, 1)
        self._proofs = ProofMemory(folder / "store/proofs", self.store.load_key(), 600.0, 86400.0)
        self.records = VolumeRecords(folder / "store/volumes")
        self.cgroups = FakeHierarchy(folder / "cgroups")
        self.registry = DirectoryVolumeRegistry(folder / "registry")
        throttles = GroupRecords(folder / "store/throttles")
        self.throttle = Throttle(
            UnsupportedByNode("no cgroups here") if unthrottled else self.cgroups, throttles, require_throttle
        )
        self.pins = NodePins(pins, name, lambda: self.now)
        performance = PerformanceLookup(self.registry)
        exposures = VolumeExposures(
            self.records, self.store, self.images, self.mounts, self.throttle, performance
        )
        self.preparation = self.prepare_for(AllowList(nas))
        self.volumes = NodeVolumes(self.preparation, exposures, self.room, self.events)
        self.recovery = NodeRecovery(exposures, self.store, self.fills, self.throttle, performance, self.pins)

    def resolver(self, refresh_moving: bool = False) -> Resolver:
        """A resolver over this node's source and store."""
        return Resolver(
            cast(WorkerPool, self.source),
            self._proofs,
            self.room,
            refresh_moving=refresh_moving,
            manifests=self.store,
        )

    def prepare_for(
        self, allowed: AllowList, refresh_moving: bool = False, grants: DataCacheGrants | None = None
    ) -> VolumePreparation:
        """What brings images here for whoever may use the sources that are `allowed`."""
        resolver = self.resolver(refresh_moving)
        return VolumePreparation(resolver, self.pins, self.fills, self.verification, allowed, grants)

    def _ready(self) -> None:
        if self.not_ready:
            raise self.not_ready

    def close(self) -> None:
        """End this start, as a kill would: nothing is undone."""
        self.throttle.close()
        self.store.close()

    def path(self, name: str) -> Path:
        """A staging or target path."""
        return self.folder / "kubelet" / name

    def request(self, volume: str, path: str, **more: Any) -> MountRequest:
        """A request with a reader mode; `staging` is a name, too."""
        staging = str(self.path(more.pop("staging"))) if "staging" in more else ""
        secrets = Secrets(more.pop("secrets", {}))
        return replace(MountRequest(volume, self.path(path), READER, HUB, secrets, (), True, staging), **more)

    def stage(self, volume: str = "vol", path: str = "staging", seconds: float = 30, **more: Any) -> None:
        self.volumes.stage(self.request(volume, path, **more), Deadline(seconds))

    def publish(self, volume: str = "vol", path: str = "pod1", seconds: float = 30, **more: Any) -> None:
        self.volumes.publish(self.request(volume, path, **{"staging": "staging", **more}), Deadline(seconds))

    def inline(self, volume: str = "csi-1", path: str = "pod1", seconds: float = 30, **more: Any) -> None:
        mode = AccessMode.SINGLE_NODE_WRITER
        self.volumes.publish(
            self.request(volume, path, **{"context": INLINE, "mode": mode, **more}), Deadline(seconds)
        )

    def unpublish(self, volume: str = "vol", path: str = "pod1") -> None:
        self.volumes.unpublish(volume, self.path(path))

    def unstage(self, volume: str = "vol", path: str = "staging") -> None:
        self.volumes.unstage(volume, self.path(path))

    @property
    def image_path(self) -> Path:
        """Where the one image that is (or was) mounted is mounted."""
        (path,) = (self.folder / "mounts").glob("*/*")
        return path

    def staged_as_before(self, path: str = "staging") -> None:
        """Have a volume staged as earlier versions did: by a bind mount of its image."""
        self.mounts.unmount(self.path(path))
        self.mounts.bind_mount(self.image_path, self.path(path))

    @property
    def shown(self) -> list[str]:
        """The names of the paths that show a volume, as the kernel says."""
        below = f"{self.folder}/kubelet/"
        return sorted(
            mount.target.removeprefix(below)
            for mount in self.mounts.list_mounts()
            if mount.target.startswith(below)
        )

    @property
    def image_mounts(self) -> list[str]:
        """The digests of the mounted images, once for each mount."""
        return sorted(
            Path(mount.target).parent.name
            for mount in self.mounts.list_mounts()
            if mount.target.startswith(f"{self.folder}/mounts/")
        )

    @property
    def left(self) -> list[str]:
        """Mounts, loop devices and records that are there."""
        return [
            *(mount.target for mount in self.mounts.list_mounts()),
            *self.kernel.loops,
            *(volume.id for volume in self.records.load_all_and_delete_unreadable()),
        ]

    @property
    def limits_left(self) -> list[str]:
        """Devices that any cgroup still has a limit for, and the plugin's records of limits."""
        devices = {
            device for place in walk_folders(self.cgroups.root) for device in self.cgroups.limited(place)
        }
        return [*sorted(devices), *(path.name for path in (self.folder / "store/throttles").iterdir())]
