"""The limit of a pod as its containers and volumes share it, and after a change of a live volume."""

from __future__ import annotations

import itertools
import time

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.throttled import Site, cgroups, hub_of, parts, site, within
from tests.benchmarks.volume import Setting
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K, DIRECT_16K
from tests.kernel.kubelet import V2, Container
from tests.kernel.machine import until
from tests.kernel.throttle.volumes import plain, reads

LIMIT, SECONDS = 500, 10.0
_CHANGES = (LIMIT // 2, 2 * LIMIT, LIMIT)


def measure(setting: Setting) -> list[Table]:
    """I/Os a second over 10 s."""
    with hub_of(setting.folder, min(setting.total, 2**30)) as hub, site(setting.folder, hub) as running:
        return [_shared(running), *_changed(running)]


def _shared(running: Site) -> Table:
    table = Table(f"Who shares a limit of {LIMIT} IOPS, direct 4k, {SECONDS:.0f} s, {cgroups()}", "IOPS")
    pod = running.kubelet.pod()
    containers = [pod.add_container() for _ in range(3)]
    shown = running.volumes.inline(pod, plain(LIMIT))
    started = [
        fio.Fio(container, parts(shown)[0], DIRECT_4K, SECONDS, log=True, clock=V2)
        for container in containers
    ]
    results = [one.wait() for one in started]
    if V2:
        within(table, "three containers together", fio.together(results).iops, LIMIT, 0.05)
    else:
        for number, result in enumerate(results, 1):
            within(table, f"container {number} of three", result.iops, LIMIT, 0.03)
    pod = running.kubelet.pod()
    container = pod.add_container()
    first, _ = (running.volumes.inline(pod, plain(LIMIT), name) for name in ("first", "second"))
    within(
        table,
        "two volumes of one class, read through one",
        _iops(container, parts(first)[0]),
        2 * LIMIT,
        0.05,
    )
    inner = Container(container.path / "init.scope")
    inner.path.mkdir()
    until(lambda: V2 or inner.limit(first.device) == reads(2 * LIMIT))
    within(
        table, "the same from a cgroup of the container's own", _iops(inner, parts(first)[0]), 2 * LIMIT, 0.05
    )
    pod = running.kubelet.pod()
    container, shown = pod.add_container(), running.volumes.inline(pod, {"readBandwidth": "4Mi"})
    result = fio.run(container, parts(shown)[0], DIRECT_16K, SECONDS)
    within(table, "4 MiB/s alone, direct 16k", result.iops, 4 * 2**20 / 2**14, 0.05)
    return table


def _iops(container: Container, file: object) -> float:
    return fio.run(container, file, DIRECT_4K, SECONDS).iops  # type: ignore[arg-type]


def _changed(running: Site) -> list[Table]:
    """A live volume gets other limits."""
    pod = running.kubelet.pod()
    container = pod.add_container()
    volume = running.volumes.make(plain(_CHANGES[-1]))
    shown = running.volumes.show(volume, pod)
    taken, table = [], Table(f"A live volume's limit is changed, direct 4k, {SECONDS:.0f} s", "IOPS")
    for before, limit in itertools.pairwise((_CHANGES[-1], *_CHANGES)):
        began = time.monotonic()
        running.machine.modify(volume, plain(limit))
        assert until(lambda limit=limit: container.limit(shown.device) == reads(limit), 60)
        taken.append(time.monotonic() - began)
        within(table, f"from {before} to {limit}", _iops(container, parts(shown)[0]), limit, 0.05)
        say(f"changed to {limit} after {taken[-1]:.2f} s")
    late = Table("From ControllerModifyVolume to the kernel's limit", "s", 2)
    late.row("until the kernel holds it", Series(tuple(taken)), at_most(5, " s"))
    return [table, late]
