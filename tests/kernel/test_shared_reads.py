"""Sixteen pods read one image at once: the disk is read once, the origin was asked once, and nobody waits much longer than one would."""

from __future__ import annotations

import statistics
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
PODS, ROUNDS = 16, 4
POD_MEMORY = 2048 * MIB
# What an ESSD of level PL0 reads at most. Sixteen copies of an image are half a machine's memory bandwidth: without a
# disk that is much slower than that, the time would tell of the two cores of the test machine.
DISK = 180 * MIB
Runs = dict[int, list["Cold"]]


@dataclass(frozen=True)
class Cold:
    """A run that began with nothing in the page cache: bytes read from the loop device and from the store's disk."""

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
            limited = cold_runs(files, groups, devices, ROUNDS)
    show("disk as it is", unlimited)
    show(f"disk of {DISK // MIB} MiB/s", limited)

    many = unlimited[PODS] + limited[PODS]
    assert all(cold.run.bytes_each == {IMAGE} and cold.loop >= 0.95 * IMAGE for cold in many)
    assert max(max(cold.loop, cold.disk) for cold in many) <= 1.05 * IMAGE
    assert min(cold.run.spread for cold in many) <= 0.1
    assert ratio(limited) <= 1.3
    # The proof of reading takes a byte a volume and program.
    assert sum(hub.counters.bytes_sent.values()) <= IMAGE + 4


def ratio(runs: Runs) -> float:
    """Median over the rounds of the time of sixteen over the time of one."""
    return statistics.median(
        many.run.seconds / one.run.seconds for one, many in zip(runs[1], runs[PODS], strict=True)
    )


def show(title: str, runs: Runs) -> None:
    print(f"\n{title}: time of {PODS} / time of 1 is {ratio(runs):.2f}")
    print("readers  seconds  started within  of the image: from the loop, from the disk")
    for readers, done in runs.items():
        for cold in done:
            shares = "  ".join(f"{size / IMAGE:.3f}" for size in (cold.loop, cold.disk))
            print(f"{readers:7d}  {cold.run.seconds:7.3f}  {cold.run.spread * 1000:11.1f} ms  {shares}")
