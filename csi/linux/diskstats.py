"""Read counters of block devices, from a single read of /proc/diskstats."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

# The kernel counts sectors of 512 bytes, whatever the device's own sector size.
_SECTOR = 512
# Columns of /proc/diskstats after major, minor and name: reads completed, reads merged, sectors read
# (Documentation/admin-guide/iostats.rst of the kernel).
_READS, _SECTORS = 3, 5


def reads_by_device(
    devices: Collection[str], file: Path = Path("/proc/diskstats")
) -> dict[str, tuple[int, int]]:
    """Return (reads, bytes read) since boot of those `devices` ("major:minor") that exist."""
    counters = {}
    for line in file.read_text().splitlines():
        words = line.split(None, _SECTORS + 1)
        device = f"{words[0]}:{words[1]}"
        if device in devices:
            counters[device] = int(words[_READS]), int(words[_SECTORS]) * _SECTOR
    return counters
