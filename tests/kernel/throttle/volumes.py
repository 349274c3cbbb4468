"""Volumes with limits, shown to pods: what the kernel holds for them and what kubelet is told."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi.pb import csi_pb2 as pb
from csi.performance.limits import IO_SIZE, Rate
from tests.kernel.kubelet import Container, Kubelet, Pod
from tests.kernel.machine import MIB, Machine
from tests.kernel.requests import OK, Words, inline_id

SLOW = "IN_TEST_GUEST" in os.environ
IOPS = [int(word) for word in os.environ.get("THROTTLE_IOPS", "300,1000" if SLOW else "500,2000").split(",")]
PAIR = [int(word) for word in os.environ.get("THROTTLE_PAIR", "300,1000" if SLOW else "500,5000").split(",")]
SECONDS = float(os.environ.get("THROTTLE_SECONDS", "4"))
# Bytes of the files of the model: faults come one at a time of each reader, and several readers need a file
# each.
SIZES = {"model.bin": 192 * MIB, "second.bin": 24 * MIB, "third.bin": 24 * MIB}
MODEL = {"repoId": "org/model"}
_METERED = re.compile(r"metered burst I/O: (\d+)")
_CREDIT = re.compile(r"burst credit left: (\d+) of \d+ I/Os")
_numbers = itertools.count(1)


def reads(iops: int) -> Rate:
    """What `readIops` alone means: an I/O counts for 16 KiB."""
    return Rate(iops, iops * IO_SIZE)


def plain(iops: int) -> dict[str, str]:
    """The performance keys of a ceiling."""
    return {"readIops": str(iops)}


@dataclass(frozen=True)
class Shown:
    """The volume `id` at a pod's path `target`."""

    machine: Machine
    id: str
    target: Path

    @property
    def file(self) -> Path:
        """The largest file in it."""
        return self.target / "model.bin"

    @property
    def files(self) -> list[Path]:
        """All the large ones."""
        return [self.target / name for name in SIZES]

    @property
    def device(self) -> str:
        """ "major:minor" of the device that is read."""
        number = self.target.stat().st_dev
        return f"{os.major(number)}:{os.minor(number)}"

    @property
    def message(self) -> str:
        """What NodeGetVolumeStats says of it."""
        return self.machine.condition(self.target, self.id).message


class Volumes:
    """The volumes of the model on `machine`, shown to pods of `kubelet`."""

    def __init__(self, machine: Machine, kubelet: Kubelet) -> None:
        self.machine, self._kubelet = machine, kubelet
        self._shown: list[Shown] = []
        self._made: list[pb.Volume] = []

    def inline(self, pod: Pod, performance: Words, name: str = "cache") -> Shown:
        """An inline volume of the pod."""
        target = pod.target(name)
        assert self.machine.inline(target, {**MODEL, **performance}) == (OK, "")
        return self._noted(Shown(self.machine, inline_id(str(target)), target))

    def make(self, performance: Words) -> pb.Volume:
        """A persistent volume, not shown yet."""
        volume = self.machine.create(f"volume-{next(_numbers)}", {**MODEL, **performance})
        self._made.append(volume)
        return volume

    def show(self, volume: pb.Volume, pod: Pod, name: str = "cache") -> Shown:
        """Show a persistent volume to a pod."""
        return self._noted(Shown(self.machine, volume.volume_id, self.machine.show(volume, pod.target(name))))

    def _noted(self, shown: Shown) -> Shown:
        self._shown.append(shown)
        return shown

    def take(self, shown: Shown) -> None:
        """Unpublish."""
        assert self.machine.unpublish(shown.target, shown.id) == (OK, "")
        self._shown.remove(shown)

    def clear(self) -> list[Path]:
        """End the pods' processes and take everything away again: the cgroups, still alive, in which a
        limit has been left behind."""
        devices = {shown.device for shown in self._shown}
        for pod in self._kubelet.pods:
            pod.end()
        for shown in list(self._shown):
            self.take(shown)
        for volume in self._made:
            assert self.machine.unstage(volume.volume_id) == (OK, "")
        return [group for device in devices for group in self._kubelet.ruled(device)]


def limits_of(containers: Sequence[Container], shown: Shown) -> list[Rate]:
    """What the kernel lets each container read."""
    return [container.limit(shown.device) for container in containers]


def metered(message: str) -> int:
    """The I/Os that a condition says were metered."""
    return _number(_METERED, message)


def credit_left(message: str) -> int:
    """The I/Os of credit that a condition says are left."""
    return _number(_CREDIT, message)


def _number(pattern: re.Pattern[str], message: str) -> int:
    found = pattern.search(message)
    assert found, message
    return int(found[1])


@contextmanager
def watched(container: Container, device: str) -> Iterator[list[Rate]]:
    """Every limit that a look a hundred times a second finds meanwhile."""
    seen: list[Rate] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            seen.append(container.limit(device))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
