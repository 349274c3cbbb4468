"""Throttles of cgroup version 1: the controller blkio (Documentation/admin-guide/cgroup-v1/blkio-controller.rst of the kernel)."""

from __future__ import annotations

from pathlib import Path

from csi.linux.cgroups.hierarchy import Count, holdable, lines_of, write_to
from csi.performance.limits import Rate

_IOPS, _BYTES = "blkio.throttle.read_iops_device", "blkio.throttle.read_bps_device"
_IOS_DONE, _BYTES_DONE = "blkio.throttle.io_serviced", "blkio.throttle.io_service_bytes"


class Blkio:
    """The hierarchy of the controller blkio, mounted at `root`."""

    shown = "Blkio"
    flat = True
    watched: tuple[str, ...] = (_IOPS, _BYTES)

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, pod: Path) -> None:
        """Nothing: every cgroup has the controller."""

    def limit(self, cgroup: Path, device: str, rate: Rate) -> bool:
        """One line "major:minor number" for each of both files; 0 removes it."""
        iops = _write(cgroup / _IOPS, device, holdable(rate.iops) or 0)
        return _write(cgroup / _BYTES, device, rate.bytes_per_second or 0) or iops

    def rate(self, cgroup: Path, device: str) -> Rate:
        """From both files."""
        return Rate(_read(cgroup / _IOPS, device) or None, _read(cgroup / _BYTES, device) or None)

    def count(self, cgroup: Path, device: str) -> Count:
        """Lines "major:minor Read number"."""
        return Count(_done(cgroup / _IOS_DONE, device), _done(cgroup / _BYTES_DONE, device))


def _read(file: Path, device: str) -> int:
    return next((int(words[1]) for words in lines_of(file) if words[0] == device), 0)


def _done(file: Path, device: str) -> int:
    return next((int(words[2]) for words in lines_of(file) if words[:2] == [device, "Read"]), 0)


def _write(file: Path, device: str, value: int) -> bool:
    if _read(file, device) == value:
        return False
    return write_to(file, f"{device} {value}")
