"""Both programs as separate processes, as a test or benchmark wants them: `with Plugins(folder, hub=...)
as plugins`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from csi.errors import DataCacheError
from csi.linux.mounts import KernelMountTable
from datacache.client import PluginClient

_BIN = Path(sys.executable).parent
# In an emulated machine beside other work Python alone takes a minute to load all this.
_START_SECONDS = 300.0
# The tests' origins, and where they redirect to, are addresses of this machine.
LOOPBACK = {"DATACACHE_ALLOW_ORIGINS": "127.0.0.0/8", "PYTHONFAULTHANDLER": "1"}
_STOP_SECONDS = 60.0


class Program:
    """One program under test; its log is kept in a file."""

    def __init__(self, command: list[str], endpoint: str, environment: Mapping[str, str], log: Path) -> None:
        self.command, self.endpoint, self.environment, self.log = command, endpoint, environment, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **extra_environment: str) -> None:
        """Start it and return when it answers Probe."""
        with self.log.open("ab") as log:
            environment = {**os.environ, **LOOPBACK, **self.environment, **extra_environment}
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with PluginClient(self.endpoint, timeout=30) as client:
                    if client.probe():
                        return
            except DataCacheError:
                time.sleep(0.02)
        raise AssertionError(f"{self.command[0]} did not start:\n{self.text()[-3000:]}")

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit status. Who does not leave is made to say what its threads do."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
            raise AssertionError(f"{self.command[0]} did not leave:\n{self.text()[-8000:]}") from None

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def children(self) -> list[int]:
        """Process ids of its workers."""
        return children_of(self.pid)


class Plugins:
    """Controller and node plugin with folders below `folder`; `environment` is theirs (HF_ENDPOINT and such),
    extra flags as lists.

    With `shared_registry` the node plugin watches the controller's registry, as it does for limits that
    change; with `kubeconfig` that is the cluster which this file names, in place of a folder.
    """

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
        self.store, self.registry = folder / "store", folder / "registry"
        environment, registry = (
            {**(environment or {})},
            ["--registry", "kubernetes" if kubeconfig else str(self.registry)],
        )
        if kubeconfig:
            environment["KUBECONFIG"] = str(kubeconfig)
        self.controller = self._program(
            "controller", [*registry, "--state-dir", str(self.registry), *(controller or [])], environment
        )
        node = [*(registry if shared_registry or kubeconfig else []), *(node or [])]
        self.node = self._program(
            "node", ["--node-id", "node-1", "--store", str(self.store), *node], environment
        )

    def _program(self, name: str, flags: list[str], environment: Mapping[str, str]) -> Program:
        endpoint = f"unix://{self.folder}/{name}.sock"
        command = [str(_BIN / f"datacache-{name}"), "--endpoint", endpoint, *flags]
        return Program(command, endpoint, environment, self.folder / f"{name}.log")

    def __enter__(self) -> Plugins:
        try:
            self.controller.start()
            self.node.start()
        except BaseException as error:
            # Who fails to enter is not asked to leave.
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in (self.node, self.controller):
            if program.process:
                program.stop()
        unmount_below(self.folder)

    def client(self, program: str = "node", timeout: float = 120.0) -> PluginClient:
        """A client of one of the two ("node" or "controller")."""
        return PluginClient(getattr(self, program).endpoint, timeout)

    def processes(self) -> list[int]:
        """Process ids of both programs and of all that descends from them.

        Not of what else runs on the machine.
        """
        found = [
            program.pid
            for program in (self.controller, self.node)
            if program.process and program.process.poll() is None
        ]
        for pid in found:
            found += children_of(pid)
        return found

    def leftovers(self) -> list[str]:
        """Mounts, loop devices, volume records and worker processes that are there now."""
        mounts = [f"mount {mount.target}" for mount in mounts_below(self.folder)]
        loops = [f"loop {loop}" for loop in loops_below(self.folder)]
        records = [f"record {path.name}" for path in (self.store / "volumes").glob("*")]
        return mounts + loops + records


def children_of(pid: int) -> list[int]:
    """Process ids of the children of a process; none when it is gone."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, task.read_text().split())
    return children


def mounts_below(folder: Path) -> list:
    """The mounts whose targets are below `folder`."""
    return [mount for mount in KernelMountTable().list_mounts() if mount.target.startswith(f"{folder}/")]


def loops_below(folder: Path) -> Iterator[str]:
    """Loop devices over files below `folder`."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().startswith(f"{folder}/"):
                yield backing.parent.parent.name
        except OSError:
            continue


def unmount_below(folder: Path) -> None:
    """Unmount everything below `folder`, newest first: a test that failed must not leave its mounts to the
    next."""
    for mount in reversed(mounts_below(folder)):
        KernelMountTable().unmount(Path(mount.target))
