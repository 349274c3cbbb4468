"""Pods as kubelet and a container runtime shape them in the cgroup tree, v1 (blkio) or v2, below a root of
the test's own.

with Kubelet(folder) as kubelet:
    pod = kubelet.pod(Qos.BURSTABLE, Driver.SYSTEMD)
    container = pod.add_container()
    container.run(["cat", "/proc/self/cgroup"])
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from csi.performance.limits import Rate

_MOUNTED = Path("/sys/fs/cgroup")
V2 = (_MOUNTED / "cgroup.controllers").exists()
ROOT = _MOUNTED if V2 else _MOUNTED / "blkio"
_RULE_FILES = ("io.max",) if V2 else ("blkio.throttle.read_iops_device", "blkio.throttle.read_bps_device")
# Joins before exec, so that not one read of the program is outside.
_JOIN = 'echo $$ > "$0"/cgroup.procs && exec "$@"'
_numbers = itertools.count(1)


class Served(NamedTuple):
    """Reads and bytes that the kernel has let through."""

    ios: int
    bytes: int

    def since(self, earlier: Served) -> Served:
        """Those after `earlier`."""
        return Served(self.ios - earlier.ios, self.bytes - earlier.bytes)


class Driver(Enum):
    """How kubelet writes cgroups: its --cgroup-driver, and for NESTED systemd slices that carry the name
    of its --cgroup-root, as in kind."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"
    NESTED = "systemd below a --cgroup-root"


class Qos(Enum):
    """A pod's quality of service; guaranteed pods are directly in kubepods."""

    GUARANTEED = ""
    BURSTABLE = "burstable"
    BESTEFFORT = "besteffort"


class Kubelet:
    """The cgroups and pod folders (`folder`/pods) of one node.

    Leaving ends the processes of its containers and removes its cgroups.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = ROOT / f"datacache-test-{os.getpid()}-{next(_numbers)}"
        self.pods: list[Pod] = []

    def __enter__(self) -> Kubelet:
        _make(self.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pod in self.pods:
            pod.end()
        remove(self.root)

    def pod(
        self, qos: Qos = Qos.BURSTABLE, driver: Driver = Driver.CGROUPFS, uid: str = "", cgroup: bool = True
    ) -> Pod:
        """A pod; without `cgroup` its own cgroup is to be made later, by its first container or `make`."""
        made = Pod(self.root, self._folder, uid or str(uuid.uuid4()), qos, driver)
        self.pods.append(made)
        # Those above it are there from the start of kubelet on.
        _make(made.path if cgroup else made.path.parent)
        return made

    def ruled(self, device: str) -> list[Path]:
        """The cgroups below the root that limit `device` ("major:minor")."""
        return ruled(self.root, device)


class Pod:
    """One pod: where its cgroup is, its containers, and where its volumes are published."""

    def __init__(self, root: Path, folder: Path, uid: str, qos: Qos, driver: Driver) -> None:
        self.uid, self.driver, self._folder = uid, driver, folder
        self.path = root / _pod_path(uid, qos, driver)
        self.containers: list[Container] = []

    def target(self, volume: str = "cache") -> Path:
        """Where kubelet publishes the pod's volume of that name."""
        return self._folder / "pods" / self.uid / "volumes" / "kubernetes.io~csi" / volume / "mount"

    def make(self) -> None:
        """Make the pod's cgroup."""
        _make(self.path)

    def add_container(self) -> Container:
        """A container of a new id, in a cgroup of its own."""
        self.make()
        name = secrets.token_hex(32)
        path = self.path / (name if self.driver is Driver.CGROUPFS else f"cri-containerd-{name}.scope")
        path.mkdir()
        self.containers.append(Container(path))
        return self.containers[-1]

    def restart_container(self, container: Container) -> Container:
        """End the container and remove its cgroup; the one that takes its place has a new id."""
        container.end()
        remove(container.path)
        self.containers.remove(container)
        return self.add_container()

    def end(self) -> None:
        """End the processes of all containers."""
        for container in self.containers:
            container.end()


class Container:
    """One container: processes are started in its cgroup `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, argv: Sequence[str], **how: Any) -> subprocess.Popen[str]:
        """A process in the container's cgroup; `how` is for Popen."""
        process = subprocess.Popen(["/bin/sh", "-c", _JOIN, str(self.path), *argv], text=True, **how)
        self._processes.append(process)
        return process

    def run(self, argv: Sequence[str]) -> str:
        """Run a program to its end in the container: its output; raises CalledProcessError when it fails."""
        with self.start(argv, stdout=subprocess.PIPE) as process:
            output, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(argv), output)
        return output

    def adopt(self, process: subprocess.Popen[str]) -> None:
        """Move a process that runs already into the container's cgroup."""
        (self.path / "cgroup.procs").write_text(str(process.pid))
        self._processes.append(process)

    def limit(self, device: str) -> Rate:
        """What the kernel lets this container read from `device` ("major:minor"): alone on v1, together
        with its pod's others on v2."""
        return limit_of(self.path.parent if V2 else self.path, device)

    def served(self, device: str) -> Served:
        """What the kernel has counted of this container's reads from `device` where their limit is: as with
        `limit`, on v2 with its pod's others.

        On v1 it counts those that a limit holds alone.
        """
        return served_to(self.path.parent if V2 else self.path, device)

    def end(self) -> None:
        """Kill every process of the container, as a runtime does, and wait.

        One that waits for a limited read ends behind it.
        """
        end = time.monotonic() + 30
        while pids := _pids(self.path):
            assert time.monotonic() < end, f"processes {pids} in {self.path} do not end"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._processes:
                process.poll()
            time.sleep(0.01)
        for process in self._processes:
            process.wait()


def limit_of(group: Path, device: str) -> Rate:
    """The rule of one cgroup for reads from `device`, as the kernel shows it."""
    if V2:
        words = dict(word.split("=") for word in _line(group / "io.max", device))
        return Rate(_number(words.get("riops", "max")), _number(words.get("rbps", "max")))
    return Rate(*(_number(next(iter(_line(group / name, device)), "max")) for name in _RULE_FILES))


def served_to(group: Path, device: str) -> Served:
    """The counters of one cgroup for reads from `device`, on v2 with those below it (cgroup-v2.rst, io.stat.

    Blkio-controller.rst).
    """
    if V2:
        words = dict(word.split("=") for word in _line(group / "io.stat", device))
        return Served(int(words.get("rios", 0)), int(words.get("rbytes", 0)))
    return Served(
        *(
            _read_count(group / f"blkio.throttle.{name}", device)
            for name in ("io_serviced", "io_service_bytes")
        )
    )


def limit(group: Path, device: str, rate: Rate) -> None:
    """Limit reads of one cgroup, as a runtime or an administrator may."""
    values = rate.iops, rate.bytes_per_second
    if V2:
        riops, rbps = ("max" if value is None else value for value in values)
        (group / "io.max").write_text(f"{device} riops={riops} rbps={rbps}")
    else:
        for name, value in zip(_RULE_FILES, values, strict=True):
            (group / name).write_text(f"{device} {value or 0}")


def ruled(root: Path, device: str) -> list[Path]:
    """The cgroups of the whole tree below `root` that limit `device`."""
    return [Path(folder) for folder, _, _ in os.walk(root) if limit_of(Path(folder), device) != Rate()]


def remove(root: Path) -> None:
    """Remove a tree of cgroups; their processes have ended, or do so within some seconds."""
    end = time.monotonic() + 60
    for folder in list(_deepest_first(root)):
        while folder.exists():
            try:
                folder.rmdir()
            except OSError:
                assert time.monotonic() < end, (
                    f"{folder} cannot be removed: {(folder / 'cgroup.procs').read_text()!r} are in it"
                )
                time.sleep(0.02)


def _make(path: Path) -> None:
    # Real kubelets enable cpu and memory here, none enables io.
    for folder in reversed([path, *path.parents]):
        if ROOT in folder.parents:
            folder.mkdir(exist_ok=True)


def _pids(group: Path) -> list[int]:
    file = group / "cgroup.procs"
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def _deepest_first(root: Path) -> Iterator[Path]:
    return (Path(folder) for folder, _, _ in os.walk(root, topdown=False))


def _pod_path(uid: str, qos: Qos, driver: Driver) -> Path:
    """As kubelet's cgroup manager names it: cgroupfs joins with "/", systemd with "-" and every slice
    within its prefix."""
    words = ["kubepods", *([qos.value] if qos.value else []), f"pod{uid}"]
    if driver is Driver.CGROUPFS:
        return Path(*words)
    words = [*(["kubelet"] if driver is Driver.NESTED else []), *(word.replace("-", "_") for word in words)]
    return Path(*("-".join(words[: count + 1]) + ".slice" for count in range(len(words))))


def _line(file: Path, device: str) -> list[str]:
    """What a file of rules says behind `device`.

    Nothing where the file or the cgroup is not there (a controller that is off, a race).
    """
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return []
    return next((words[1:] for words in lines if words[0] == device), [])


def _read_count(file: Path, device: str) -> int:
    lines = [line.split() for line in file.read_text().splitlines()]
    return next((int(words[2]) for words in lines if words[:2] == [device, "Read"]), 0)


def _number(word: str) -> int | None:
    return None if word == "max" else int(word)
