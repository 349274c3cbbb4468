"""What a cgroup hierarchy can do for throttling, behind one Protocol: version 1 and version 2 differ in almost everything."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from csi.errors import UnsupportedByNode
from csi.performance.limits import Rate

_NO_IOPS_LIMIT = 2**32 - 1


@dataclass(frozen=True)
class ReadCount:
    """Reads since the cgroup exists: I/Os as the kernel counts them (an I/O may be as large as the device's largest request), and bytes."""

    ios: int = 0
    bytes: int = 0

    def __add__(self, other: ReadCount) -> ReadCount:
        return ReadCount(self.ios + other.ios, self.bytes + other.bytes)

    def __sub__(self, other: ReadCount) -> ReadCount:
        return ReadCount(self.ios - other.ios, self.bytes - other.bytes)


class CgroupHierarchy(Protocol):
    """The cgroup hierarchy that throttles block devices. Devices are "major:minor".

    Methods that meet a cgroup that is gone do nothing; one that the kernel refuses raises UnsupportedByNode.
    """

    shown: str
    """The hierarchy as messages name it."""
    root: Path
    """The folder of the root cgroup."""
    is_flat: bool
    """Whether a limit on a cgroup leaves those below it free (version 1), so that each one needs its own."""
    limit_files: tuple[str, ...]
    """The files whose writing by somebody else may undo a limit."""

    def enable_throttling(self, pod: Path) -> None:
        """Make limits on the cgroup `pod` possible; raises UnsupportedByNode."""

    def set_limit(self, cgroup: Path, device: str, rate: Rate) -> bool:
        """Let `cgroup` read no faster from `device`; whether something had to be written for it, since every write lets some I/O through."""

    def read_limit(self, cgroup: Path, device: str) -> Rate:
        """The limit in force."""

    def read_count(self, cgroup: Path, device: str) -> ReadCount:
        """What was read; counting begins with the first limit on the device."""


def representable_iops(iops: int | None) -> int | None:
    """A limit in I/Os as the kernel can hold it: an unsigned int whose largest value means none."""
    return None if iops is None or iops >= _NO_IOPS_LIMIT else iops


def write_cgroup_file(file: Path, text: str) -> bool:
    """Write to a cgroup file; False where the cgroup is gone. Raises UnsupportedByNode with what the kernel says."""
    try:
        # Without O_CREAT: with it, a file that is not there is "permission denied".
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV) and not file.parent.exists():
            return False
        raise UnsupportedByNode(f"the kernel refuses {text!r} in {file}: {error.strerror}") from error
    return True


def read_cgroup_lines(file: Path) -> list[list[str]]:
    """The words of each line of a cgroup file; nothing where the cgroup is gone."""
    try:
        return [line.split() for line in file.read_text().splitlines()]
    except OSError:  # ENOENT before the cgroup is gone, ENODEV while it goes
        return []
