"""Volumes over the real programs: made, staged, and gone again."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi.errors import Busy
from csi.pb import csi_pb2 as pb
from datacache.client import PluginClient
from tests.plugins import Plugins


@dataclass(frozen=True)
class Setting:
    """What every benchmark is told: repositories of `gib` GiB, `rounds` rounds, and a scratch folder on
    the disk that is measured."""

    gib: float
    rounds: int
    folder: Path

    @property
    def total(self) -> int:
        """Bytes of a repository."""
        return int(self.gib * 2**30)


def hub_parameters(repo: str) -> dict[str, str]:
    """A volume of a model repository."""
    return {"repoSource": "HuggingFace/Model", "repoId": repo}


@contextmanager
def plugins(
    folder: Path,
    environment: Mapping[str, str] | None = None,
    node: list[str] | None = None,
    kubeconfig: Path | None = None,
) -> Iterator[Plugins]:
    """Both programs with fresh folders below `folder`, which are removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="plugins-", dir=folder))
    try:
        with Plugins(
            place, environment, node=["--log-format", "json", *(node or [])], kubeconfig=kubeconfig
        ) as running:
            yield running
    finally:
        shutil.rmtree(place)


@dataclass(frozen=True)
class Staged:
    """A volume staged at `path`, to be read where `published` shows it.

    `fill_seconds` is the worker's part, from its order to the sealed image (0: nothing to fill).
    """

    id: str
    path: Path
    context: dict[str, str]
    seconds: float
    fill_seconds: float


def stage(
    running: Plugins,
    node: PluginClient,
    name: str,
    parameters: Mapping[str, str],
    secrets: Mapping[str, str] | None = None,
) -> Staged:
    """Create a volume and stage it, calling again while its fill goes on, as kubelet does."""
    with running.client("controller") as controller:
        volume = _created(controller, name, parameters, secrets)
    path, context = running.folder / f"{name}-staging", dict(volume.volume_context)
    path.mkdir(exist_ok=True)
    started = time.monotonic()
    while True:
        try:
            node.stage(volume.volume_id, str(path), context, secrets=secrets or {})
            break
        except Busy:
            continue
    return Staged(
        volume.volume_id,
        path,
        context,
        time.monotonic() - started,
        _fill_seconds(running, context["manifestDigest"]),
    )


def _created(
    controller: PluginClient, name: str, parameters: Mapping[str, str], secrets: Mapping[str, str] | None
) -> pb.Volume:
    """The volume, asked for again while its source is resolved, as external-provisioner does."""
    while True:
        try:
            return controller.create(name, parameters, secrets)
        except Busy:
            continue


def _fill_seconds(running: Plugins, digest: str) -> float:
    events = [
        json.loads(line)
        for line in running.node.text().splitlines()
        if digest in line and "image sealed" in line
    ]
    return float(events[-1]["seconds"]) if events else 0.0


@contextmanager
def staged(
    running: Plugins, name: str, parameters: Mapping[str, str], secrets: Mapping[str, str] | None = None
) -> Iterator[Staged]:
    """A staged volume, taken away afterwards; its image stays in the store."""
    with running.client("node") as node, running.client("controller") as controller:
        volume = stage(running, node, name, parameters, secrets)
        try:
            yield volume
        finally:
            node.unstage(volume.id, str(volume.path))
            controller.delete(volume.id)


@contextmanager
def published(running: Plugins, volume: Staged, target: Path) -> Iterator[Path]:
    """The volume at a pod's path too."""
    with running.client("node") as node:
        node.publish(volume.id, str(target), volume.context, str(volume.path))
        try:
            yield target
        finally:
            node.unpublish(volume.id, str(target))
