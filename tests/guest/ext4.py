"""A folder as a disk of a guest."""

from __future__ import annotations

import subprocess
from pathlib import Path


def write(folder: Path, disk: Path, room: int) -> None:
    """Make `disk` (a sparse file) an ext4 with all that is in `folder` and about `room` bytes free; raises
    CalledProcessError.

    Without a journal: guests drop their changes.
    """
    kib = int(
        subprocess.run(["du", "-sk", str(folder)], check=True, capture_output=True, text=True).stdout.split()[
            0
        ]
    )
    with disk.open("wb") as stream:
        stream.truncate(kib * 1024 * 5 // 4 + room)
    subprocess.run(
        ["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", str(folder), str(disk)],
        check=True,
    )
