"""Detection of the cgroup hierarchy that can throttle block devices on this node."""

from __future__ import annotations

import os
from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.blkio import Blkio
from csi.linux.cgroups.hierarchy import CgroupHierarchy
from csi.linux.cgroups.io_max import IoMax


def detect_hierarchy(root: Path) -> CgroupHierarchy:
    """Return the hierarchy below `root`, where cgroups are mounted (/sys/fs/cgroup).

    Raises UnsupportedByNode, naming what is missing.
    """
    controllers = root / "cgroup.controllers"
    blkio = root / "blkio"
    # cgroup.controllers exists only at the root of a version 2 hierarchy.
    if controllers.exists():
        if "io" not in controllers.read_text().split():
            raise UnsupportedByNode(
                f"the cgroups at {root} (version 2) have no controller io; "
                "boot a kernel with CONFIG_BLK_CGROUP, or delegate io"
            )
        return _require_writable(IoMax(root), root / "cgroup.subtree_control")
    if not blkio.is_dir():
        raise UnsupportedByNode(
            f"no cgroups with block I/O throttling at {root}: neither cgroup.controllers nor blkio/ exists; "
            "mount the node's cgroups there"
        )
    if not (blkio / "blkio.throttle.read_iops_device").exists():
        raise UnsupportedByNode(
            f"the controller blkio at {blkio} cannot throttle; boot a kernel with CONFIG_BLK_DEV_THROTTLING"
        )
    return _require_writable(Blkio(blkio), blkio / "blkio.throttle.read_iops_device")


def _require_writable(hierarchy: CgroupHierarchy, file: Path) -> CgroupHierarchy:
    if not os.access(file, os.W_OK):
        raise UnsupportedByNode(
            f"{file} cannot be written; mount the node's cgroups read-write into this program's container"
        )
    return hierarchy
