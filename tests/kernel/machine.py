"""One machine as the tests see it: both programs, their clients, and what a kubelet would keep."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from csi.pb import csi_pb2 as pb
from tests.kernel import requests
from tests.kernel.mount_refs import staging_path
from tests.kernel.requests import OK, Answer, Words
from tests.plugins import Plugins, loops_below, mounts_below

MIB = 2**20
_CREATE_SECONDS = 60.0
Place = str | Path


class Machine:
    """Both programs with their folders below `folder`; calls return (code, message)."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        node: list[str] | None = None,
        controller: list[str] | None = None,
        shared_registry: bool = False,
        kubeconfig: Path | None = None,
    ) -> None:
        self.folder = folder
        self.plugins = Plugins(folder, environment, node, controller, shared_registry, kubeconfig)

    def __enter__(self) -> Machine:
        self.plugins.__enter__()
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        workers = self.workers()
        self.plugins.__exit__(kind, error, trace)
        assert until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()]), (
            "workers outlive their plugin"
        )

    def connect(self) -> None:
        """Open the clients."""
        self._clients = self.plugins.client("node"), self.plugins.client("controller")
        self.node, self.controller = self._clients[0].node, self._clients[1].controller

    def disconnect(self) -> None:
        """Close the clients."""
        for client in self._clients:
            client.__exit__(None, None, None)

    def restart_node(self) -> None:
        """Start the node plugin again, after it has ended."""
        self.plugins.node.start()
        self._clients[0].__exit__(None, None, None)
        self.connect()

    @property
    def store(self) -> Path:
        """The node's store."""
        return self.plugins.store

    def target(self, pod: Place) -> Path:
        """Where a pod's volume is published: a place of its name, or just where the test says."""
        return pod if isinstance(pod, Path) else self.folder / "pods" / pod / "mount"

    def staging(self, volume_id: str) -> Path:
        """Where a volume is staged."""
        return staging_path(self.folder, volume_id)

    def create(self, name: str, parameters: Words, secrets: Words | None = None, **more: Any) -> pb.Volume:
        """A volume, asked for as external-provisioner does: again while the work goes on.

        Fails the test when there is none.
        """
        request, end = requests.create(name, parameters, secrets, **more), time.monotonic() + _CREATE_SECONDS
        while True:
            try:
                return self.controller.CreateVolume(request, timeout=30).volume
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED or time.monotonic() > end:
                    raise

    def stage(self, volume: pb.Volume, secrets: Words | None = None, **more: Any) -> Answer:
        """Stage a volume at its place."""
        return requests.answer(
            self.node.NodeStageVolume, requests.stage(volume, self.staging(volume.volume_id), secrets, **more)
        )

    def publish(self, volume: pb.Volume, pod: Place, **more: Any) -> Answer:
        """Publish a staged volume to a pod."""
        request = requests.publish(volume, self.staging(volume.volume_id), self.target(pod), **more)
        return requests.answer(self.node.NodePublishVolume, request)

    def inline(
        self, pod: Place, attributes: Words, secrets: Words | None = None, timeout: float = 60.0
    ) -> Answer:
        """Publish a pod's inline volume."""
        return requests.answer(
            self.node.NodePublishVolume,
            requests.inline(str(pod), self.target(pod), attributes, secrets),
            timeout,
        )

    def inline_soon(
        self, pod: Place, attributes: Words, secrets: Words | None = None, timeout: float = 120.0
    ) -> Any:
        """The same without waiting: the call's future."""
        return self.node.NodePublishVolume.future(
            requests.inline(str(pod), self.target(pod), attributes, secrets), timeout=timeout
        )

    def unpublish(self, pod: Place, volume_id: str = "") -> Answer:
        """Take a volume (a pod's own inline one by default) from a pod."""
        return requests.answer(
            self.node.NodeUnpublishVolume,
            requests.unpublish(volume_id or requests.inline_id(str(pod)), self.target(pod)),
        )

    def unstage(self, volume_id: str) -> Answer:
        """Unstage a volume."""
        return requests.answer(
            self.node.NodeUnstageVolume, requests.unstage(volume_id, self.staging(volume_id))
        )

    def show(self, volume: pb.Volume, pod: Place, secrets: Words | None = None) -> Path:
        """Stage and publish; the pod's path."""
        assert self.stage(volume, secrets) == (OK, "")
        assert self.publish(volume, pod) == (OK, "")
        return self.target(pod)

    def condition(self, pod: Place, volume_id: str = "") -> pb.VolumeCondition:
        """What kubelet is told of a published volume (a pod's own inline one by default)."""
        request = requests.stats(volume_id or requests.inline_id(str(pod)), self.target(pod))
        return self.node.NodeGetVolumeStats(request, timeout=30).volume_condition

    def modify(self, volume: pb.Volume, parameters: Words) -> None:
        """Change a live volume; fails the test when that is refused."""
        self.controller.ControllerModifyVolume(requests.modify(volume.volume_id, parameters), timeout=30)

    def images(self) -> list[Path]:
        """The folders of the store's images."""
        return sorted((self.store / "images").iterdir())

    def sealed(self) -> list[Path]:
        """The sealed images."""
        return sorted((self.store / "images").glob("*/image"))

    def half_made(self) -> list[str]:
        """What only unfinished work leaves: whatever an image has before it is sealed, unfinished files,
        records, mounts, loops.

        Whoever lets go of an image last removes it, a moment after the answer: so what is still there after
        some seconds counts.
        """
        until(lambda: not self._half_made(), 30)
        return self._half_made()

    def _half_made(self) -> list[str]:
        partial = [
            path for path in files_below(self.store / "images") if not (path.parent / "image").exists()
        ]
        unfinished = [
            path
            for folder in (self.store, self.plugins.registry)
            for path in files_below(folder)
            if path.suffix == ".tmp"
        ]
        return [
            str(path.relative_to(self.folder)) for path in (*partial, *unfinished)
        ] + self.plugins.leftovers()

    def loops(self) -> list[str]:
        """Loop devices over this machine's images."""
        return list(loops_below(self.folder))

    def mounts(self) -> list[str]:
        """Everything mounted below the folder."""
        return [mount.target for mount in mounts_below(self.folder)]

    def logs(self) -> str:
        """What both programs and their workers have logged."""
        return self.plugins.node.text() + self.plugins.controller.text()

    def logged(self, words: str) -> list[str]:
        """The log lines of both programs that match a regular expression."""
        return [line for line in self.logs().splitlines() if re.search(words, line)]

    def workers(self) -> list[int]:
        """Process ids of both programs' workers."""
        programs = (self.plugins.node, self.plugins.controller)
        return [
            pid
            for program in programs
            if program.process and program.process.poll() is None
            for pid in program.children()
        ]

    def descriptors(self) -> int:
        """How many files the node plugin has open."""
        return len(list(Path(f"/proc/{self.plugins.node.pid}/fd").iterdir()))


def files_below(folder: Path) -> Iterator[Path]:
    """The files below `folder`; unlike Path.rglob not disturbed by folders that are removed meanwhile."""
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def json_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines of a log."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of `true`, looked at for at most `seconds`; then its last one."""
    end = time.monotonic() + seconds
    while not (value := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def content(path: Path, size: int) -> Path:
    """A file of `size` bytes at `path`, no two MiB of it alike."""
    block = os.urandom(MIB)
    with path.open("wb") as stream:
        for at in range(0, size, MIB):
            stream.write((at.to_bytes(8, "little") + block[8:])[: size - at])
    return path
