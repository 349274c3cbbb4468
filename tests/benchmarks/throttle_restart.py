"""kill -9 of the node plugin under load: how long until it keeps limits again, and whether one was ever
lifted."""

from __future__ import annotations

import time

from csi.performance.limits import Rate
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.throttled import Site, hub_of, parts, site, within
from tests.benchmarks.volume import Setting
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K
from tests.kernel.machine import until
from tests.kernel.throttle.volumes import plain, reads, watched

SUSTAINED, BURST, CREDIT = 500, 2_000, 15_000
KILLS, BESIDE = 10, 50


def measure(setting: Setting) -> list[Table]:
    """Seconds from the start of the new plugin; a burst goes on all the while."""
    with hub_of(setting.folder, min(setting.total, 2**30)) as hub, site(setting.folder, hub) as running:
        for _ in range(BESIDE):
            pod = running.kubelet.pod()
            pod.add_container()
            running.volumes.inline(pod, plain(SUSTAINED))
        return [_limits(running), _credit(running)]


def _limits(running: Site) -> Table:
    """A container that came while nobody kept limits shows when somebody does again."""
    pod = running.kubelet.pod()
    shown = running.volumes.inline(pod, plain(SUSTAINED))
    taken = []
    for number in range(KILLS):
        running.machine.plugins.node.kill()
        container = pod.add_container()
        began = time.monotonic()
        running.machine.restart_node()
        assert until(lambda container=container: container.limit(shown.device) == reads(SUSTAINED))
        taken.append(time.monotonic() - began)
        say(f"kill {number + 1} of {KILLS}: {taken[-1]:.2f} s")
    table = Table(f"kill -9 and restart with {BESIDE + 1} throttled pods, {KILLS} times", "s", 2)
    table.row("until a container that came meanwhile is limited", Series(tuple(taken)), at_most(2, " s"))
    return table


def _credit(running: Site) -> Table:
    pod = running.kubelet.pod()
    container = pod.add_container()
    shown = running.volumes.inline(
        pod, {**plain(SUSTAINED), "burstIops": str(BURST), "burstCredit": str(CREDIT)}
    )
    lasts = CREDIT / (BURST - SUSTAINED)
    reader = fio.Fio(container, parts(shown)[0], DIRECT_4K, 2 * lasts, log=True)
    with watched(container, shown.device) as seen:
        for _ in range(3):
            time.sleep(lasts / 5)
            running.machine.plugins.node.kill()
            running.machine.restart_node()
        result = reader.wait()
    say(f"{result.series(1.0)}")
    table = Table(f"A burst of {lasts:.0f} s through three kills", "I/Os")
    within(table, f"in {result.seconds:.1f} s", result.ios, SUSTAINED * result.seconds + CREDIT, 0.05)
    table.row("looks at the kernel's limit", Series((len(seen),)), unit="looks")
    table.row("  that found none", Series((seen.count(Rate()),)), at_most(0, ""), unit="looks")
    return table
