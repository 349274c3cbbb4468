"""Sixteen pods read one image at once: the disk is read once, the origin was asked once, and nobody waits much longer than one would."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, Machine, content
from tests.kernel.readers import Pods, Run, bytes_read, disk_of, forget_pages, pods, read_at_once
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

IMAGE = 1024 * MIB
PODS, ROUNDS = 16, 3
POD_MEMORY = 2048 * MIB
# What an ESSD of level PL1 reads at most. Sixteen copies of a GiB are half a machine's memory bandwidth: without a
# disk that is slower than that, the time would tell of the two cores of the test machine.
DISK = 350 * MIB
Runs = dict[int, list[tuple[Run, list[int]]]]


def two_volumes_in_sixteen_pods(machine: Machine) -> list[Path]:
    """The file as each pod sees it."""
    volumes = [machine.create(name, {"repoId": "org/big"}) for name in ("first", "second")]
    return [machine.show(volumes[number % 2], f"pod{number}") / "model.bin" for number in range(PODS)]


def cold_runs(files: list[Path], groups: Pods, devices: list[str], rounds: int) -> Runs:
    """One reader and sixteen by turns, each with nothing in the page cache: the runs, and bytes read from each device."""
    runs: Runs = {1: [], PODS: []}
    for _ in range(rounds):
        for readers, done in runs.items():
            forget_pages(files[0])
            before = [bytes_read(device) for device in devices]
            run = read_at_once(files[:readers], groups)
            done.append((run, [bytes_read(device) - old for device, old in zip(devices, before, strict=True)]))
    return runs


def test_sixteen_cold_readers_of_two_volumes_read_the_disk_once(start: Start, hub: Hub, tmp_path: Path) -> None:
    hub.repo("org/big", {"model.bin": content(tmp_path / "model.bin", IMAGE)})
    machine = start()
    files = two_volumes_in_sixteen_pods(machine)
    assert len(machine.loops()) == 1
    assert len({file.stat().st_dev for file in files}) == 1

    devices = [machine.loops()[0], disk_of(machine.store)]
    with pods(PODS, POD_MEMORY) as groups:
        unlimited = cold_runs(files, groups, devices, 1)
        show("disk as it is", unlimited, devices)
        groups.limit_reads(devices[0], DISK)
        limited = cold_runs(files, groups, devices, ROUNDS)
        show(f"disk of {DISK // MIB} MiB/s", limited, devices)

    many = unlimited[PODS] + limited[PODS]
    for run, read in many:
        assert run.bytes_each == {IMAGE}
        assert 0.95 * IMAGE <= read[0] <= 1.05 * IMAGE
    # Others may read from the disk and keep the cores busy meanwhile; that only adds.
    assert min(read[1] for _, read in many) <= 1.05 * IMAGE
    assert min(run.spread for run, _ in many) <= 0.1
    assert ratio(limited) <= 1.3
    # The proof of reading takes a byte a volume and program.
    assert sum(hub.counters.bytes_sent.values()) <= IMAGE + 4


def ratio(runs: Runs) -> float:
    """Median over the rounds of the time of sixteen over the time of one."""
    return statistics.median(many.seconds / one.seconds for (one, _), (many, _) in zip(runs[1], runs[PODS], strict=True))


def show(title: str, runs: Runs, devices: list[str]) -> None:
    print(f"\n{title}: time of {PODS} / time of 1 is {ratio(runs):.2f}")
    print(f"readers  seconds  started within  read from {devices[0]}, {devices[1]} (of the image)")
    for readers, done in runs.items():
        for run, read in done:
            shares = ", ".join(f"{size / IMAGE:.3f}" for size in read)
            print(f"{readers:7d}  {run.seconds:7.3f}  {run.spread * 1000:11.1f} ms  {shares}")
