"""A reader that reads from the very first moment of its container: what it gets before the limit is there."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from csi.performance.limits import Rate
from tests.kernel.kubelet import Container, Pod

# One direct read of 4 KiB after the other; says the moment of each.
_READER = """
import mmap, os, random, sys, time
file, buffer = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
blocks = os.fstat(file).st_size // 4096
print("ready", flush=True)
sys.stdin.readline()
moments, end = [time.monotonic()], time.monotonic() + float(sys.argv[2])
while moments[-1] < end:
    os.preadv(file, [buffer], random.randrange(blocks) * 4096)
    moments.append(time.monotonic())
print(*moments)
"""


@dataclass(frozen=True)
class Early:
    """The first reads of a container: `moments` in seconds since its cgroup is there, `limited` when the
    limit was first seen to be."""

    moments: list[float]
    limited: float

    def ahead(self, iops: int) -> float:
        """How many I/Os more than `iops` a second allow had been read where that was most."""
        return max(number - iops * moment for number, moment in enumerate(self.moments))

    def after(self, pause: float) -> float:
        """I/Os a second from `pause` seconds after the limit on."""
        later = [moment for moment in self.moments if moment >= self.limited + pause]
        return (len(later) - 1) / (later[-1] - later[0])


class EarlyReader:
    """Waits outside of the pod, ready to read `file`."""

    def __init__(self, file: Path, seconds: float) -> None:
        self._process = subprocess.Popen(
            _argv(file, seconds), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"

    def read_from_the_start_of(self, pod: Pod, device: str, limit: Rate) -> tuple[Container, Early]:
        """Read in a container of `pod` that is made for it now.

        The reads begin as its cgroup is there, earlier than any runtime could.
        """
        container = pod.add_container()
        began = time.monotonic()
        container.adopt(self._process)
        _go(self._process)
        limited = _seen(container, device, limit) - began
        said, _ = self._process.communicate()
        return container, Early([float(word) - began for word in said.split()], limited)


def _argv(file: Path, seconds: float) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", _READER, str(file), str(seconds)]


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


def _seen(container: Container, device: str, limit: Rate) -> float:
    """When the limit is seen first, looking all the time."""
    end = time.monotonic() + 60
    while container.limit(device) != limit:
        assert time.monotonic() < end, "the limit does not come"
    return time.monotonic()


def started_in(pod: Pod, file: Path, seconds: float, device: str, limit: Rate) -> tuple[Container, Early]:
    """The same of a program that a runtime starts in the new container: joined first, then executed."""
    container = pod.add_container()
    began = time.monotonic()
    process = container.start(_argv(file, seconds), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _go(process)
    limited = _seen(container, device, limit) - began
    said, _ = process.communicate()
    return container, Early([float(word) - began for word in said.split()[1:]], limited)
