"""A machine made of namespaces: processes, mounts, network, host name and cgroups of its own, on this
machine's kernel and root file system."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.cluster.cgroups import Groups, hierarchies

_START_SECONDS = 20.0
_STOP_SECONDS = 30.0
_PAUSE_SECONDS = 0.2
_UNSHARED = "unshare --net --mount --pid --cgroup --ipc --uts --fork --kill-child --mount-proc --propagation private".split()  # noqa: E501
_ENTERED = "--net --mount --pid --cgroup --ipc --uts --wd=/".split()
# The kernel ends all processes of the space with its first one, and that one with the thread that started it,
# however this ends.
_ENDING = "setpriv --pdeathsig KILL --".split()
# The first process: it takes in what others leave behind.
_FIRST = "while :; do sleep 3600 & wait; done"


@dataclass
class Space:
    """A machine called `name`. Its cgroups are the roots that it sees.

    `folder` keeps its logs. Each of `binds` shows a folder in another's place (place: folder), each of
    `memory` is an empty folder at first: what a bind shows is kept when the machine is switched off, as on a
    disk, and all else is gone.
    """

    name: str
    folder: Path
    groups: Groups
    binds: Mapping[Path, Path] = field(default_factory=dict)
    memory: Sequence[Path] = ()
    pid: int = 0
    _holder: subprocess.Popen[bytes] | None = None
    _daemons: list[Daemon] = field(default_factory=list)

    def __enter__(self) -> Space:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Switch it on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.groups.make()
        argv = [*_ENDING, *self._in_groups(), *_UNSHARED, "sh", "-euc", self._boot()]
        log = self.folder / "boot.log"
        with log.open("ab") as errors:
            self._holder = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        assert self._holder.stdout
        if self._holder.stdout.readline() != b"up\n":
            self.stop()
            raise AssertionError(f"the namespaces of {self.name} did not come up: {log.read_text()}")
        self.pid = children(self._holder.pid)[0]

    def stop(self) -> None:
        """Switch it off: each process is killed, each mount and each network device goes."""
        if self._holder is None:
            return
        inside = _inside(self.pid) if self.pid else []
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout:
            self._holder.stdout.close()
        self._holder, self.pid = None, 0
        while self._daemons:
            self._daemons.pop().process.wait(_STOP_SECONDS)
        wait_for(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside),
            _STOP_SECONDS,
            f"processes of {self.name} to end",
        )
        self.groups.remove()

    @property
    def root(self) -> Path:
        """Its root folder as this machine sees it, its own mounts included."""
        return Path(f"/proc/{self.pid}/root")

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` there."""
        assert self.pid, f"{self.name} is switched off"
        return [*self._in_groups(), "nsenter", "-t", str(self.pid), *_ENTERED, "--", *argv]

    def run(self, *argv: str, input: str = "") -> str:
        """Run a program there to its end; its standard output.

        AssertionError with what it said where it fails.
        """
        done = subprocess.run(self.argv(argv), input=input, capture_output=True, text=True)
        assert done.returncode == 0, (
            f"{shlex.join(argv)} on {self.name} ended with {done.returncode}: {done.stderr.strip()}"
        )
        return done.stdout

    def daemon(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Daemon:
        """Start a program there that goes on; its output is kept in `folder`."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            environment = {**os.environ, **(environment or {})}
            process = subprocess.Popen(
                self.argv(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        self._daemons.append(Daemon(name, process, log))
        return self._daemons[-1]

    def _in_groups(self) -> list[str]:
        enter = "; ".join(f"echo $$ > {place}/cgroup.procs" for place in self.groups.places)
        return ["sh", "-euc", f'{enter}; exec "$@"', "sh"]

    def _boot(self) -> str:
        mounts = [
            f"umount {one.place}; mount -t {one.kind} -o {one.options} cgroup {one.place}"
            for one in hierarchies()
        ]
        mounts += [f"mount --bind {source} {place}" for place, source in self.binds.items()]
        mounts += [f"mount -t tmpfs {self.name} {place}" for place in self.memory]
        steps = [
            *mounts,
            "mount --make-rshared /",
            f"hostname {self.name}",
            "ip link set lo up",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
        ]
        return "\n".join([*steps, "echo up", "exec >/dev/null", _FIRST])


@dataclass(frozen=True)
class Daemon:
    """A program of a space."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """AssertionError with the end of its log where it has ended."""
        assert self.process.poll() is None, (
            f"{self.name} ended with {self.process.returncode}:\n{self.tail()}"
        )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and wait for that."""
        for pid in children(self.process.pid):
            os.kill(pid, number)
        self.process.wait(_STOP_SECONDS)

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def children(pid: int) -> list[int]:
    """The ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(ready: Callable[[], object], seconds: float, what: str) -> None:
    """Return when `ready()` is true; AssertionError that names `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain for {what}"
        time.sleep(_PAUSE_SECONDS)


def _inside(pid: int) -> list[int]:
    """The processes that share the process namespace of `pid`."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _space(int(entry.name)) == _space(pid) != ""
    ]


def _space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
