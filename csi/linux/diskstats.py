"""How much was read from every block device: one read of one file, however many devices there are."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

_SECTOR = 512
# Columns of /proc/diskstats (Documentation/admin-guide/iostats.rst of the kernel): reads and sectors read come after number and name.
_READS, _SECTORS = 3, 5


def reads_by_device(
    devices: Collection[str], file: Path = Path("/proc/diskstats")
) -> dict[str, tuple[int, int]]:
    """(reads, bytes read) since boot of each of `devices` ("major:minor") that is there."""
    found = {}
    for line in file.read_text().splitlines():
        words = line.split(None, _SECTORS + 1)
        device = f"{words[0]}:{words[1]}"
        if device in devices:
            found[device] = int(words[_READS]), int(words[_SECTORS]) * _SECTOR
    return found
