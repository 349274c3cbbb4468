"""Where tests write: on a disk.

A tmpfs would fill the memory, and O_DIRECT, page cache and ownership are others there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_DISK = "/var/tmp"
_MEMORY = ("tmpfs", "ramfs")


def keep_to_a_disk() -> None:
    """Have this process and what it starts write temporary files to /var/tmp where the folder for them
    (TMPDIR, /tmp) is in memory."""
    if file_system(Path(tempfile.gettempdir())) in _MEMORY and file_system(Path(_DISK)) not in _MEMORY:
        os.environ["TMPDIR"] = tempfile.tempdir = _DISK


def file_system(folder: Path) -> str:
    """The kind of the file system that holds `folder` (proc(5), mountinfo); empty where it is not listed."""
    number = folder.stat().st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == wanted:
            return kind.split()[0]
    return ""
