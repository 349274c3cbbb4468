"""A cluster leaves nothing, whether it is stopped, fails or is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import cgroups, programs
from tests.cluster.lab import Lab, running
from tests.cluster.pods import pod
from tests.cluster.spaces import wait_for

pytestmark = pytest.mark.cluster


class Traces:
    """What a lab has on this machine while it runs."""

    def __init__(self, lab: Lab) -> None:
        self.folder, self.groups = lab.folder, lab.groups
        self.device = f"dccluster{lab.plane.network.number}"
        pids = [lab.plane.space.pid, *(node.space.pid for node in lab.nodes)]
        self.namespaces = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids for kind in ("pid", "mnt", "net", "cgroup")}

    def left(self) -> list[str]:
        """What of it is still there."""
        return [*self._processes(), *self._places(), *_loops(self.folder)]

    def _processes(self) -> Iterator[str]:
        for pid in Path("/proc").glob("[0-9]*"):
            try:
                used = {os.readlink(space) for space in (pid / "ns").iterdir()} & self.namespaces
                command = (pid / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if used or str(self.folder) in command:
                yield f"process {pid.name}: {command}"

    def _places(self) -> Iterator[str]:
        yield from (str(place) for place in [self.folder, *self.groups.places, Path("/sys/class/net") / self.device] if place.exists())
        yield from (f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line)


def _loops(folder: Path) -> list[str]:
    files = [file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    return [f"loop device of {file.strip()}" for file in files if str(folder) in file or file.startswith("/var/lib/datacache")]


def mounted_here() -> list[str]:
    return [line.split(" - ")[0].split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def test_a_cluster_that_is_stopped_leaves_nothing(built: None) -> None:
    mounts = mounted_here()
    with running(nodes=2) as lab:
        lab.kubectl.apply(pod("left"), pod("behind", node="node-2"))
        for name in ("left", "behind"):
            lab.kubectl.wait_running(name)
        traces = Traces(lab)
        assert mounted_here() == mounts
        assert len(traces.left()) > 20
    assert traces.left() == []
    assert mounted_here() == mounts


def test_a_cluster_whose_test_fails_says_what_its_programs_said_and_leaves_nothing(built: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="kubelet ended with"), running() as lab:
        traces = Traces(lab)
        os.kill(lab.nodes[0].daemons["kubelet"].process.pid, signal.SIGKILL)
        lab.nodes[0].daemons["kubelet"].process.wait()
        lab.check()
    assert "--- node-1/kubelet.log" in capsys.readouterr().err
    assert traces.left() == []


def test_what_a_killed_cluster_left_is_removed_by_the_next(built: None) -> None:
    known = set(programs.cache().glob("run-*"))
    argv = [sys.executable, "-m", "tests.cluster", "--bare"]
    with subprocess.Popen(argv, cwd=programs.TREE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout and killed.stdout.readline().startswith("export KUBECONFIG=")
        killed.kill()
    (folder,) = set(programs.cache().glob("run-*")) - known
    groups = cgroups.of_run(folder)
    wait_for(lambda: not groups.processes(), 30, "the processes of the killed cluster to end")
    with running(nodes=0):
        assert not folder.exists()
        assert not [place for place in groups.places if place.exists()]
