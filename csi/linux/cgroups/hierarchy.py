"""Protocol of a cgroup hierarchy that can throttle block devices.

Versions 1 and 2 differ in almost everything.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from csi.errors import UnsupportedByNode
from csi.performance.limits import Rate

# The kernel stores IOPS limits in an unsigned int whose largest value means no limit.
_NO_IOPS_LIMIT = 2**32 - 1


@dataclass(frozen=True)
class ReadCount:
    """Reads since the cgroup exists.

    I/Os are counted as the kernel does: one may be as large as the device's largest request.
    """

    ios: int = 0
    bytes: int = 0

    def __add__(self, other: ReadCount) -> ReadCount:
        return ReadCount(self.ios + other.ios, self.bytes + other.bytes)

    def __sub__(self, other: ReadCount) -> ReadCount:
        return ReadCount(self.ios - other.ios, self.bytes - other.bytes)


class CgroupHierarchy(Protocol):
    """A cgroup hierarchy that throttles block devices, which are named "major:minor".

    Methods ignore a cgroup that no longer exists, and raise UnsupportedByNode if the kernel rejects a write.
    """

    display_name: str
    """Name of the hierarchy in messages."""
    root: Path
    """Folder of the root cgroup."""
    is_flat: bool
    """Whether a limit on a cgroup does not apply to its descendants (version 1).

    Each then needs its own.
    """
    limit_files: tuple[str, ...]
    """Files that may undo a limit when another program writes them."""

    def enable_throttling(self, pod: Path) -> None:
        """Make limits on the cgroup `pod` possible; raises UnsupportedByNode."""

    def set_limit(self, cgroup: Path, device: str, rate: Rate) -> bool:
        """Limit reads of `cgroup` from `device`, and return whether a file was written.

        Limits in force are not rewritten, because every write lets some I/O through.
        """

    def read_limit(self, cgroup: Path, device: str) -> Rate:
        """Return the limit in force."""

    def read_count(self, cgroup: Path, device: str) -> ReadCount:
        """Return the reads so far; counting begins with the first limit on the device."""


def representable_iops(iops: int | None) -> int | None:
    """Return a limit in I/Os per second as the kernel can hold it, None for unlimited."""
    return None if iops is None or iops >= _NO_IOPS_LIMIT else iops


def write_cgroup_file(file: Path, text: str) -> bool:
    """Write to a cgroup file; return False if the cgroup is gone.

    Raises UnsupportedByNode with the kernel's reason.
    """
    try:
        # Without O_CREAT: with it, a missing file is reported as "permission denied".
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
    """Return the words of each line of a cgroup file; nothing if the cgroup is gone."""
    try:
        return [line.split() for line in file.read_text().splitlines()]
    except OSError:  # ENOENT after the cgroup is removed, ENODEV during the removal
        return []
