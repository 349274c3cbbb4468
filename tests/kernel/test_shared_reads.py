"""Sixteen pods read one image at once: the disk is read once, and the origin was asked once.

How long it takes: `make bench` (shared_reads).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.disks import disk
from tests.kernel.machine import MIB, Machine, content
from tests.kernel.readers import Pods, Run, bytes_read, disk_of, forget_pages, pods, read_at_once
from tests.kernel.reclaim import no_proactive_reclaim
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

IMAGE = 512 * MIB
PODS = 16
POD_MEMORY = 2048 * MIB
# What an ESSD of level PL0 reads at most.
DISK = 180 * MIB
Runs = dict[int, list["Cold"]]


@dataclass(frozen=True)
class Cold:
    """A run that began with nothing in the page cache: bytes read from the loop device and from the
    store's disk."""

    run: Run
    loop: int
    disk: int


def two_volumes_in_sixteen_pods(machine: Machine) -> list[Path]:
    """The file as each pod sees it."""
    volumes = [machine.create(name, {"repoId": "org/big"}) for name in ("first", "second")]
    return [machine.show(volumes[number % 2], f"pod{number}") / "model.bin" for number in range(PODS)]


def cold_runs(files: list[Path], groups: Pods, devices: list[str], rounds: int) -> Runs:
    """One reader and sixteen by turns."""
    runs: Runs = {1: [], PODS: []}

    for _ in range(rounds):
        for readers, done in runs.items():
            forget_pages(files[0])
            before = [bytes_read(device) for device in devices]
            run = read_at_once(files[:readers], groups)
            done.append(
                Cold(run, *(now - old for now, old in zip(map(bytes_read, devices), before, strict=True)))
            )
    return runs


def test_sixteen_cold_readers_of_two_volumes_read_the_disk_once(hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/big", {"model.bin": content(tmp_path / "model.bin", IMAGE)})
    with (
        disk(tmp_path, IMAGE + IMAGE // 4) as folder,
        Machine(folder, {"HF_ENDPOINT": hub.endpoint}) as machine,
    ):
        files = two_volumes_in_sixteen_pods(machine)
        loops = [loop for loop in machine.loops() if loop != disk_of(machine.store)]
        assert len(loops) == 1
        assert len({file.stat().st_dev for file in files}) == 1
        with no_proactive_reclaim(), pods(PODS, POD_MEMORY) as groups:
            devices = [loops[0], disk_of(machine.store)]
            unlimited = cold_runs(files, groups, devices, 1)
            groups.limit_reads(loops[0], DISK)
            limited = cold_runs(files, groups, devices, 1)
    for cold in unlimited[PODS] + limited[PODS]:
        assert cold.run.bytes_each == {IMAGE}
        assert 0.95 * IMAGE <= cold.loop <= 1.05 * IMAGE
        assert cold.disk <= 1.05 * IMAGE
    # The proof of reading takes a byte a volume and program.
    assert sum(hub.counters.bytes_sent.values()) <= IMAGE + 4
