"""Readers in memory cgroups of their own, let go together; and what block devices were read meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECTOR = 512
_ROOT = Path("/sys/fs/cgroup")
_V2 = (_ROOT / "cgroup.controllers").exists()
# Joins its cgroups, says so, waits for the moment it is told, reads, and prints when it began and ended.
_READER = """
import os, sys, time
for group in sys.argv[2:]:
    open(group, "w").write(str(os.getpid()))
buffer, file = bytearray(1 << 20), open(sys.argv[1], "rb", buffering=0)
print("ready", flush=True)
time.sleep(float(sys.stdin.readline()) - time.monotonic())
began, total = time.monotonic(), 0
while count := file.readinto(buffer):
    total += count
print(began, time.monotonic(), total, flush=True)
"""


@dataclass(frozen=True)
class Run:
    """One run of readers: seconds from the first start to the last end, seconds between first and last
    start, bytes each has read."""

    seconds: float
    spread: float
    bytes_each: set[int]


class Pods:
    """Cgroups (v1 or v2) of `count` pods: memory limited for each, reads from a device for all together."""

    def __init__(self, count: int, memory_bytes: int) -> None:
        name = f"datacache-{os.getpid()}"
        self._memory = _ROOT / name if _V2 else _ROOT / "memory" / name
        self._reads = self._memory if _V2 else _ROOT / "blkio" / name
        self._groups = [self._memory / f"pod{number}" for number in range(count)]
        for group in dict.fromkeys((self._memory, self._reads, *self._groups)):
            if _V2:
                (group.parent / "cgroup.subtree_control").write_text("+memory +io")
            group.mkdir()
        for group in self._groups:
            (group / ("memory.max" if _V2 else "memory.limit_in_bytes")).write_text(str(memory_bytes))

    def joins(self, pod: int) -> list[str]:
        """The files a process of this pod writes its id to."""
        groups = [self._groups[pod]] if _V2 else [self._groups[pod], self._reads]
        return [str(group / "cgroup.procs") for group in groups]

    def limit_reads(self, device: str, bytes_per_second: int) -> None:
        """Let all pods together read no faster from `device` (name as in /sys/block); 0 for no limit."""
        number = Path(f"/sys/block/{device}/dev").read_text().strip()
        if _V2:
            (self._reads / "io.max").write_text(f"{number} rbps={bytes_per_second or 'max'}")
        else:
            (self._reads / "blkio.throttle.read_bps_device").write_text(f"{number} {bytes_per_second}")

    def remove(self) -> None:
        """Take the cgroups away; their processes have ended."""
        end = time.monotonic() + 5
        for group in dict.fromkeys((*self._groups, self._memory, self._reads)):
            while group.exists() and time.monotonic() < end:
                try:
                    group.rmdir()
                except OSError:
                    time.sleep(0.05)
            assert not group.exists(), f"{group} cannot be removed"


@contextmanager
def pods(count: int, memory_bytes: int) -> Iterator[Pods]:
    """Fresh cgroups for the block."""
    made = Pods(count, memory_bytes)
    try:
        yield made
    finally:
        made.remove()


def read_at_once(files: Sequence[Path], groups: Pods) -> Run:
    """A process for each file, each in the next pod, all let go together."""
    readers = [_start(file, groups.joins(number)) for number, file in enumerate(files)]
    for reader in readers:
        assert reader.stdout
        assert reader.stdout.readline() == "ready\n"
    moment = f"{time.monotonic() + 0.2}\n"
    for reader in readers:
        assert reader.stdin
        reader.stdin.write(moment)
        reader.stdin.flush()
    said = [[float(word) for word in reader.communicate()[0].split()] for reader in readers]
    began, ended, sizes = zip(*said, strict=True)
    return Run(max(ended) - min(began), max(began) - min(began), {int(size) for size in sizes})


def _start(file: Path, joins: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", "-c", _READER, str(file), *joins]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def in_cgroup(cgroup: Path, command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of `cgroup` from its first instruction on.

    Raises CalledProcessError when it fails.
    """
    joined = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
    return subprocess.run(joined, check=True, text=True, **more)


def forget_pages(file: Path) -> None:
    """Drop the file's pages from the page cache, and nothing else."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def bytes_read(device: str) -> int:
    """Bytes read from a block device (name as in /sys/block) since it exists
    (Documentation/block/stat.rst, field 3)."""
    return int(Path(f"/sys/block/{device}/stat").read_text().split()[2]) * _SECTOR


def disk_of(path: Path) -> str:
    """The disk (name as in /sys/block) that holds the file system of `path`."""
    number = path.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    return device.parent.name if (device / "partition").exists() else device.name
