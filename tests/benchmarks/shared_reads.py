"""Sixteen pods that read one cold image at once, beside one that reads it alone: nobody waits much longer
than one would."""

from __future__ import annotations

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting
from tests.kernel.disks import disk
from tests.kernel.machine import Machine, content
from tests.kernel.readers import disk_of, pods
from tests.kernel.reclaim import no_proactive_reclaim
from tests.kernel.test_shared_reads import (
    DISK,
    IMAGE,
    MIB,
    POD_MEMORY,
    PODS,
    Runs,
    cold_runs,
    two_volumes_in_sixteen_pods,
)
from tests.origins.hub import Hub


def measure(setting: Setting) -> list[Table]:
    """Seconds from the first reader's begin to the last one's end, on the disk as it is and on one of a PL0
    disk's speed.

    Sixteen copies of an image are half a machine's memory bandwidth: without a disk that is much slower than
    that, the time tells of the processors.
    """
    folder = setting.folder
    with Hub() as hub:
        hub.repo("org/big", {"model.bin": content(folder / "model.bin", IMAGE)})
        with (
            disk(folder, IMAGE + IMAGE // 4) as place,
            Machine(place, {"HF_ENDPOINT": hub.endpoint}) as machine,
        ):
            files = two_volumes_in_sixteen_pods(machine)
            loop = next(loop for loop in machine.loops() if loop != disk_of(machine.store))
            with no_proactive_reclaim(), pods(PODS, POD_MEMORY) as groups:
                tables = [
                    _table(
                        "the disk as it is",
                        cold_runs(files, groups, [loop, disk_of(machine.store)], setting.rounds),
                    )
                ]
                groups.limit_reads(loop, DISK)
                say(f"a disk of {DISK // MIB} MiB/s")
                limited = cold_runs(files, groups, [loop, disk_of(machine.store)], setting.rounds)
                tables.append(_table(f"a disk of {DISK // MIB} MiB/s", limited, 1.3))
    return tables


def _table(title: str, runs: Runs, goal: float | None = None) -> Table:
    table = Table(f"{PODS} pods read an image of {IMAGE // MIB} MiB at once, {title}", "s", 3)
    alone, many = (Series(tuple(cold.run.seconds for cold in runs[count])) for count in (1, PODS))
    table.row("one", alone)
    table.compare(f"all {PODS}", many, [("one", alone, at_most(goal) if goal else None)])
    table.notes.append(f"they began within {max(cold.run.spread for cold in runs[PODS]) * 1000:.0f} ms")
    return table
