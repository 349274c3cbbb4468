"""The programs of the lab: where tests/setup/cluster/programs.sh has built them, and what keeps a lab from
running here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster.cgroups import hierarchies
from tests.cluster.images import BUSYBOX_PROGRAM
from tests.cluster.node import CNI

TREE = Path(__file__).parents[2]
_SETUP = TREE / "tests" / "setup" / "cluster"
_NEEDED = "unshare nsenter setpriv ip openssl buildah mmdebstrap".split()
_CONTROLLERS = {"blkio", "cpu", "cpuset", "memory", "pids"}


def folder() -> Path:
    """The folder of the programs of this checkout's versions, whether they are there or not."""
    return Path(
        subprocess.run(
            ["sh", _SETUP / "programs.sh", "--where"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )


def cache() -> Path:
    """The folder that keeps programs, images and running labs."""
    return folder().parent


def names() -> list[str]:
    """The names of the programs."""
    return [
        line.split()[0]
        for line in (_SETUP / "programs.txt").read_text().splitlines()
        if not line.startswith("#")
    ]


def obstacle() -> str:
    """Why no lab can run here; empty where one can."""
    if os.geteuid() != 0:
        return "a cluster in namespaces of its own needs root"
    if missing := sorted(_CONTROLLERS - {hierarchy.options for hierarchy in hierarchies()}):
        return f"the lab's nodes have cgroups of version 1, and there are none for {', '.join(missing)} in /sys/fs/cgroup"  # noqa: E501
    missing = [name for name in _NEEDED if not shutil.which(name)] + [
        str(path) for path in (CNI / "ptp", BUSYBOX_PROGRAM) if not path.exists()
    ]
    if missing:
        return f"{', '.join(missing)} not found; tests/setup/cluster.sh installs it"
    unbuilt = [name for name in names() if not (folder() / name).exists()]
    return (
        f"{', '.join(unbuilt)} not in {folder()}; tests/setup/cluster/programs.sh builds it (with Go)"
        if unbuilt
        else ""
    )
