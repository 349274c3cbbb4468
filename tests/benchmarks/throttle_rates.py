"""What a pod with a limit reads, beside the limit: direct, mapped, sequential."""

from __future__ import annotations

from collections.abc import Iterator

from csi.performance.limits import IO_SIZE
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table
from tests.benchmarks.throttled import Site, cgroups, hub_of, parts, site, within
from tests.benchmarks.volume import Setting
from tests.kernel import fio
from tests.kernel.fio import MAPPED, SEQUENTIAL, Job
from tests.kernel.kubelet import Container
from tests.kernel.throttle.volumes import Shown, plain

IOPS = (500, 2_000, 10_000, 50_000)
SECONDS, DISK_SECONDS = 20.0, 5.0
# The queue is short where the limit is low: what stands in it when the time is over is read all the same.
_QUEUE = {500: 4, 2_000: 8}
Disk = dict[str, fio.Result]


def measure(setting: Setting) -> Iterator[Table]:
    """I/Os (or bytes) a second over 20 s windows, one window each; on a fresh machine."""
    with hub_of(setting.folder, setting.total) as hub, site(setting.folder, hub) as running:
        disk = _disk(running, setting)
        yield _random(running, setting, disk)
        yield _sequential(running, disk)


def _jobs(iops: int) -> list[tuple[Job, float]]:
    depth = _QUEUE.get(iops, 64)
    return [(fio.direct("4k", depth), 0.03), (fio.direct("16k", depth), 0.05), (MAPPED, 0.05)]


def _run(container: Container, shown: Shown, job: Job, seconds: float) -> fio.Result:
    """A process a file for faults, since each waits for its own; one for all else."""
    files = parts(shown)
    return fio.run(container, files if job is MAPPED else files[0], job, seconds)


def _disk(running: Site, setting: Setting) -> Disk:
    """Every job without a limit."""
    pod = running.kubelet.pod()
    container, shown = pod.add_container(), running.volumes.inline(pod, {})
    found = {
        job.name: _run(container, shown, job, min(DISK_SECONDS, _longest(setting, 100_000)))
        for job, _ in [*_jobs(0), (SEQUENTIAL, 0.0)]
    }
    say("without a limit: " + ", ".join(f"{name} {result.iops:.0f} IOPS" for name, result in found.items()))
    return found


def _longest(setting: Setting, iops: int) -> float:
    """Seconds after which every page of the model may have been read."""
    return 0.9 * setting.total / 4096 / iops


def _random(running: Site, setting: Setting, disk: Disk) -> Table:
    table = Table(f"Random reads of one pod, {SECONDS:.0f} s, {cgroups()}", "IOPS")
    for iops in IOPS:
        pod = running.kubelet.pod()
        container, shown = pod.add_container(), running.volumes.inline(pod, plain(iops))
        for job, share in _jobs(iops):
            result = _run(container, shown, job, min(SECONDS, _longest(setting, iops)))
            within(table, f"{job.name} at {iops}", result.iops, iops, share, disk[job.name].iops)
            say(f"{job.name} at {iops}: {result.iops:.1f}")
    table.notes.append(
        "without a limit: " + ", ".join(f"{name} {result.iops:.0f} IOPS" for name, result in disk.items())
    )
    return table


def _sequential(running: Site, disk: Disk) -> Table:
    table = Table(f"Sequential reads of 1 MiB, {SECONDS:.0f} s, {cgroups()}", "MiB/s", 2)
    for iops in IOPS:
        pod = running.kubelet.pod()
        container, shown = pod.add_container(), running.volumes.inline(pod, plain(iops))
        result = _run(container, shown, SEQUENTIAL, SECONDS)
        most = disk[SEQUENTIAL.name].bytes_per_second / 2**20
        within(
            table,
            f"{iops} IOPS x 16 KiB",
            result.bytes_per_second / 2**20,
            iops * IO_SIZE / 2**20,
            0.05,
            most,
        )
    return table
