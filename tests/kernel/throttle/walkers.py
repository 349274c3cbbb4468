"""Readers that go through a whole file or tree once, or again and again until they are ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.kernel.kubelet import Container

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
KINDS = {"buffered": _BUFFERED, "mmap": _MAPPED, "find": _WALK}


def once(container: Container, kind: str, target: Path, file: Path) -> float:
    """Seconds of one reader of `file`, or of a walk through all below `target`; its own start-up is not counted."""
    return float(container.run(_argv(kind, target, file)))


def for_ever(container: Container, target: Path, file: Path) -> list[subprocess.Popen[str]]:
    """A reader of each kind that goes on until it is killed."""
    return [container.start([*_argv(kind, target, file), "on"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for kind in KINDS]


def _argv(kind: str, target: Path, file: Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", KINDS[kind] + _AROUND, str(target if kind == "find" else file)]
