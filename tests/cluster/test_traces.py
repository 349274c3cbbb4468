"""A cluster leaves nothing, whether it is stopped, fails or is killed."""

from __future__ import annotations

import json
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
    """What a lab has on this machine while it runs: its folder, cgroups, network device, processes, loop
    devices."""

    def __init__(self, lab: Lab) -> None:
        self.places = [
            lab.folder,
            *lab.groups.places,
            Path(f"/sys/class/net/dccluster{lab.plane.network.number}"),
        ]
        self.folder = str(lab.folder)
        # Numbers of processes and inodes are used again, on a machine where others work: those of now are
        # told by when they began.
        self.processes = {pid: began(pid) for pid in lab.groups.processes()}
        self.inodes = {
            file.stat().st_ino for node in lab.nodes for file in node.space.folder.glob("disk/*/*")
        }

    def left(self) -> list[str]:
        """What of it is still there."""
        places = [str(place) for place in self.places if place.exists()]
        mounts = [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self.folder in line
        ]
        return [*places, *mounts, *self._processes(), *self._loops()]

    def _processes(self) -> Iterator[str]:
        for pid in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
            command = command_of(pid)
            if self.folder in command or began(pid) == self.processes.get(pid, "another"):
                yield f"process {pid}: {command}"

    def _loops(self) -> list[str]:
        asked = subprocess.run(
            ["losetup", "--json", "--output", "NAME,BACK-INO"], capture_output=True, text=True, check=True
        ).stdout
        found = json.loads(asked)["loopdevices"] if asked else []
        return [f"loop device {loop['name']}" for loop in found if int(loop["back-ino"]) in self.inodes]


def began(pid: int) -> str:
    """When a process began (field 22 of proc_pid_stat(5)); empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def mounted_here() -> list[str]:
    """What this machine has mounted where nodes have folders of their own.

    Elsewhere others may be at work.
    """
    places = [
        line.split(" - ")[0].split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return [place for place in places if not place.startswith(("/tmp/", "/var/tmp/"))]


def test_a_cluster_that_is_stopped_leaves_nothing(built: None) -> None:
    mounts = mounted_here()
    with running(nodes=2) as lab:
        lab.kubectl.apply(pod("left"), pod("behind", node="node-2"))
        for name in ("left", "behind"):
            lab.kubectl.wait_running(name)
        disk = "truncate -s 16M /var/lib/disk; mkfs.ext4 -q /var/lib/disk; mount -o loop /var/lib/disk /mnt"
        lab.nodes[1].space.run("sh", "-euc", disk)
        traces = Traces(lab)
        assert mounted_here() == mounts
        found = "\n".join(traces.left())
        for trace in (
            "loop device",
            "/kubelet ",
            "containerd-shim-runc-v2 ",
            "/blkio/",
            "dccluster",
            "sleep",
        ):
            assert trace in found
    assert traces.left() == []
    assert mounted_here() == mounts


def test_a_cluster_whose_test_fails_says_what_its_programs_said_and_leaves_nothing(
    built: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="kubelet ended with"), running() as lab:
        traces = Traces(lab)
        os.kill(lab.nodes[0].daemons["kubelet"].process.pid, signal.SIGKILL)
        lab.nodes[0].daemons["kubelet"].process.wait()
        lab.check()
    assert "--- node-1/kubelet.log" in capsys.readouterr().err
    assert traces.left() == []


def test_what_a_killed_cluster_left_is_removed_by_the_next(built: None) -> None:
    argv = [sys.executable, "-m", "tests.cluster", "--bare"]
    with subprocess.Popen(argv, cwd=programs.TREE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout
        said = killed.stdout.readline()
        killed.kill()
    kubeconfig = Path(said.split()[1].removeprefix("KUBECONFIG="))
    folder = next(folder for folder in kubeconfig.parents if folder.parent == programs.cache())
    assert kubeconfig.exists()
    groups = cgroups.of_run(folder)
    wait_for(lambda: not groups.processes(), 30, "the processes of the killed cluster to end")
    with running(nodes=0):
        assert not folder.exists()
        assert not [place for place in groups.places if place.exists()]
