"""Block I/O limits of cgroup version 2, the file io.max.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import (
    CgroupHierarchy,
    ReadCount,
    read_cgroup_lines,
    representable_iops,
    write_cgroup_file,
)
from csi.performance.limits import Rate

_LIMITS_FILE, _CONTROLLERS_FILE, _COUNTERS_FILE = "io.max", "cgroup.subtree_control", "io.stat"


class IoMax(CgroupHierarchy):
    """The unified hierarchy, mounted at `root`. A limit on a cgroup applies to all its descendants."""

    display_name = "IoMax"
    is_flat = False
    limit_files: tuple[str, ...] = (_LIMITS_FILE, _CONTROLLERS_FILE)

    def __init__(self, root: Path) -> None:
        self.root = root

    def enable_throttling(self, pod: Path) -> None:
        # Enable the controller io from the root down to the pod's parent: kubelet and systemd enable it only
        # if they limit I/O themselves.
        for folder in reversed(pod.relative_to(self.root).parents):
            _enable_io_controller(self.root / folder)
        if pod.exists() and not (pod / _LIMITS_FILE).exists():
            raise UnsupportedByNode(
                f"{pod} has no {_LIMITS_FILE}: the kernel of this node cannot throttle block devices; "
                "boot one with CONFIG_BLK_DEV_THROTTLING"
            )

    def set_limit(self, cgroup: Path, device: str, rate: Rate) -> bool:
        # The line is "major:minor rbps=... riops=..."; "max" removes a limit, and keys left out (wbps, wiops)
        # keep their values.
        representable = Rate(
            _at_least_two(representable_iops(rate.iops)), _at_least_two(rate.bytes_per_second)
        )
        if self.read_limit(cgroup, device) == representable:
            return False
        words = (
            f"rbps={_format_limit(representable.bytes_per_second)} riops={_format_limit(representable.iops)}"
        )
        return write_cgroup_file(cgroup / _LIMITS_FILE, f"{device} {words}")

    def read_limit(self, cgroup: Path, device: str) -> Rate:
        fields = _read_fields(cgroup / _LIMITS_FILE, device)
        return Rate(_parse_limit(fields.get("riops")), _parse_limit(fields.get("rbps")))

    def read_count(self, cgroup: Path, device: str) -> ReadCount:
        # io.stat includes the cgroup's descendants.
        fields = _read_fields(cgroup / _COUNTERS_FILE, device)
        return ReadCount(int(fields.get("rios", 0)), int(fields.get("rbytes", 0)))


def _enable_io_controller(cgroup: Path) -> None:
    file = cgroup / _CONTROLLERS_FILE
    if any("io" in words for words in read_cgroup_lines(file)):
        return
    write_cgroup_file(file, "+io")


def _read_fields(file: Path, device: str) -> dict[str, str]:
    for words in read_cgroup_lines(file):
        if words and words[0] == device:
            return dict(word.split("=", 1) for word in words[1:] if "=" in word)
    return {}


def _at_least_two(limit: int | None) -> int | None:
    """Raise a limit of 1 to 2: the kernel rejects smaller ones (block/blk-throttle.c, tg_set_limit)."""
    return None if limit is None else max(2, limit)


def _format_limit(limit: int | None) -> str:
    return "max" if limit is None else str(limit)


def _parse_limit(word: str | None) -> int | None:
    return None if word in (None, "max") else int(word)
