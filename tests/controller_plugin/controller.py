"""The controller's volumes over a real registry and a scripted source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from controller_plugin.pvc_annotations import ParameterReader, PvcReader
from controller_plugin.volumes import ControllerVolumes, CreateRequest
from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.destinations.allow_list import PVC_ANNOTATIONS, AllowList
from csi.parameters.access_modes import AccessMode
from csi.performance.capacity import GIB
from csi.registry.pins.pins import PinRegistry
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.registry.volumes.record import VolumeRecord
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from tests.csi.registry.events.recorders import FakeAnnouncer
from tests.csi.worker.in_process import InProcess

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
READER, WRITER = AccessMode.MULTI_NODE_READER_ONLY, AccessMode.SINGLE_NODE_WRITER
BASE = CreateRequest("pvc-1", HUB, {}, (READER,))
LARGE = replace(BASE, required_bytes=20 * GIB)


class Controller:
    """`volumes` with all that they stand on in `folder`, in a cluster with `claims` where these are given."""

    def __init__(
        self,
        folder: Path,
        claims: PvcReader | None = None,
        allowed: AllowList | None = None,
        pins: PinRegistry | None = None,
    ) -> None:
        self.folder = folder
        self.source = InProcess()
        self.registry = DirectoryVolumeRegistry(folder)
        proofs = ProofMemory(folder / "proofs", b"k" * 32, 600.0, 86400.0)
        resolver = Resolver(self.source, proofs, WaitLimiter(9), refresh_moving=True)  # type: ignore[arg-type]
        self.announcer = FakeAnnouncer()
        self.volumes = ControllerVolumes(
            self.registry,
            resolver,
            ParameterReader(claims, allowed or AllowList(policy_subject=PVC_ANNOTATIONS)),
            pins,
            self.announcer,
        )

    def create(self, request: CreateRequest = BASE, seconds: float = 30, **changes: object) -> VolumeRecord:
        """A volume as `request` has it, with `changes` to it."""
        return self.volumes.create(replace(request, **changes), Deadline(seconds))  # type: ignore[arg-type]
