"""Readers that go through a whole file or tree once, or again and again until they are ended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi.performance.limits import Rate
from tests.kernel.kubelet import V2, Container, Pod, limit
from tests.kernel.machine import MIB
from tests.kernel.readers import disk_of, forget_pages
from tests.kernel.throttle.volumes import SLOW

# Each prints the seconds that it took; the first argument is a path, a second one makes it go on for ever.
_AROUND = """
import sys, time
while True:
    began = time.monotonic()
    work(sys.argv[1])
    print(time.monotonic() - began, flush=True)
    if len(sys.argv) == 2:
        break
"""
_BUFFERED = """
def work(path):
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
buffer = bytearray(1 << 20)
"""
_MAPPED = """
import mmap
def work(path):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        mapped[::4096]
"""
_WALK = """
import subprocess
def work(path):
    subprocess.run(["find", path, "-type", "f", "-size", "+1"], check=True, stdout=subprocess.DEVNULL)
"""
# What an ESSD of level PL0 gives at most, far less in an emulated machine. Faster than that, the time would
# tell of who else uses the machine.
DISK = Rate(None, (24 if SLOW else 180) * MIB)
KINDS = {"buffered": _BUFFERED, "mmap": _MAPPED, "find": _WALK}


def once(container: Container, kind: str, target: Path, file: Path) -> float:
    """Seconds of one reader of `file`, or of a walk through all below `target`.

    Its own start-up is not counted.
    """
    return float(container.run(_argv(kind, target, file)))


def once_cold(container: Container, kind: str, target: Path, file: Path) -> float:
    """The same of one that finds nothing of the image in memory, a moment after all others have begun:
    their pages are locked by then."""
    # Names and inodes, then the pages of data and of metadata.
    Path("/proc/sys/vm/drop_caches").write_text("2")
    for path in (file, Path("/dev", disk_of(target))):
        forget_pages(path)
    time.sleep(0.3)
    return once(container, kind, target, file)


@contextmanager
def disk_of_its_own(pod: Pod, container: Container, device: str) -> Iterator[None]:
    """For the block the container, alone in its pod, reads from a device that is as fast as `DISK`."""
    group = pod.path if V2 else container.path
    limit(group, device, DISK)
    try:
        yield
    finally:
        limit(group, device, Rate())


def for_ever(container: Container, target: Path, file: Path) -> list[subprocess.Popen[str]]:
    """A reader of each kind that goes on until it is killed."""
    return [
        container.start(
            [*_argv(kind, target, file), "on"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for kind in KINDS
    ]


def _argv(kind: str, target: Path, file: Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", KINDS[kind] + _AROUND, str(target if kind == "find" else file)]
