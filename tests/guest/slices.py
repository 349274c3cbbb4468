"""Pods in slices and scopes of the real systemd, asked for over its bus as kubelet and runc do (runc's
libcontainer/cgroups/systemd/v2.go)."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from types import TracebackType

from tests.kernel.kubelet import ROOT, Container
from tests.kernel.machine import until

_START = "busctl call -- org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StartTransientUnit ssa(sv)a(sa(sv))"  # noqa: E501
_DEFAULT = [["DefaultDependencies", "b", "false"]]
_ACCOUNTED = [[f"{what}Accounting", "b", "true"] for what in ("Memory", "CPU", "IO", "Tasks")]
_numbers = itertools.count(1)


class SystemdPod:
    """A burstable pod; leaving ends its containers and its slice.

    Kubelet's slices are `accounted`: systemd counts their I/O and therefore keeps the controller io on.
    Others leave it off.
    """

    def __init__(self, uid: str, accounted: bool = True) -> None:
        self.uid, self._accounted = uid, accounted
        self.slices = [
            "kubepods.slice",
            "kubepods-burstable.slice",
            f"kubepods-burstable-pod{uid.replace('-', '_')}.slice",
        ]
        self.path = ROOT.joinpath(*self.slices)
        self.containers: list[Container] = []

    def __enter__(self) -> SystemdPod:
        parents = ["-.slice", *self.slices]
        for name, parent in zip(self.slices, parents, strict=False):
            self._unit(name, [["Wants", "as", "1", parent]])
        assert until(self.path.exists)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        systemctl("stop", *(container.path.name for container in self.containers), *reversed(self.slices))
        assert until(lambda: not self.path.exists())
        for container in self.containers:
            container.end()

    def add_container(self) -> Container:
        """A scope in the pod's slice, which a sleeping process keeps."""
        name = f"cri-containerd-{next(_numbers):064x}.scope"
        sleeper = subprocess.Popen(["sleep", "infinity"], text=True)
        delegated = [["Delegate", "b", "true"]] if self._accounted else []
        self._unit(name, [["Slice", "s", self.slices[-1]], ["PIDs", "au", "1", str(sleeper.pid)], *delegated])
        container = Container(self.path / name)
        assert until(container.path.exists)
        container.adopt(sleeper)
        self.containers.append(container)
        return container

    def _unit(self, name: str, properties: list[list[str]]) -> None:
        given = [*properties, *_DEFAULT, *(_ACCOUNTED if self._accounted else [])]
        words = [word for one in given for word in one]
        subprocess.run(
            [*_START.split(), name, "replace", str(len(given)), *words, "0"],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def systemctl(*words: str) -> None:
    """Tell systemd; units that are gone are no error to `stop`."""
    subprocess.run(["systemctl", *words], check=words[0] != "stop", capture_output=True)


def controllers(cgroup: Path) -> list[str]:
    """What is on for the cgroups directly below."""
    return (cgroup / "cgroup.subtree_control").read_text().split()
