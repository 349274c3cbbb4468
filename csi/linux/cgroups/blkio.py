"""Block I/O limits of cgroup version 1, the controller blkio.

Source: the kernel's Documentation/admin-guide/cgroup-v1/blkio-controller.rst.
"""

from __future__ import annotations

from pathlib import Path

from csi.linux.cgroups.hierarchy import (
    CgroupHierarchy,
    ReadCount,
    read_cgroup_lines,
    representable_iops,
    write_cgroup_file,
)
from csi.performance.limits import Rate

_IOPS, _BYTES = "blkio.throttle.read_iops_device", "blkio.throttle.read_bps_device"
_IOS_DONE, _BYTES_DONE = "blkio.throttle.io_serviced", "blkio.throttle.io_service_bytes"


class Blkio(CgroupHierarchy):
    """The hierarchy of the controller blkio, mounted at `root`."""

    display_name = "Blkio"
    is_flat = True
    limit_files: tuple[str, ...] = (_IOPS, _BYTES)

    def __init__(self, root: Path) -> None:
        self.root = root

    def enable_throttling(self, pod: Path) -> None:
        """Do nothing: with version 1 every cgroup has the controller."""

    def set_limit(self, cgroup: Path, device: str, rate: Rate) -> bool:
        # Both files hold one line "major:minor number" per device; writing 0 removes a limit.
        iops = _write_value(cgroup / _IOPS, device, representable_iops(rate.iops) or 0)
        return _write_value(cgroup / _BYTES, device, rate.bytes_per_second or 0) or iops

    def read_limit(self, cgroup: Path, device: str) -> Rate:
        return Rate(_read_value(cgroup / _IOPS, device) or None, _read_value(cgroup / _BYTES, device) or None)

    def read_count(self, cgroup: Path, device: str) -> ReadCount:
        # Lines are "major:minor Read number".
        return ReadCount(
            _read_counter(cgroup / _IOS_DONE, device), _read_counter(cgroup / _BYTES_DONE, device)
        )


def _read_value(file: Path, device: str) -> int:
    return next((int(words[1]) for words in read_cgroup_lines(file) if words[0] == device), 0)


def _read_counter(file: Path, device: str) -> int:
    return next((int(words[2]) for words in read_cgroup_lines(file) if words[:2] == [device, "Read"]), 0)


def _write_value(file: Path, device: str, value: int) -> bool:
    if _read_value(file, device) == value:
        return False
    return write_cgroup_file(file, f"{device} {value}")
