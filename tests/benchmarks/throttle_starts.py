"""What a container reads before its limit is there: as early as a process can read, and as a runtime
starts one."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table
from tests.benchmarks.throttled import Site, cgroups, hub_of, parts, percentiles, site
from tests.benchmarks.volume import Setting
from tests.kernel.kubelet import Pod
from tests.kernel.throttle.early import Early, EarlyReader, started_in
from tests.kernel.throttle.volumes import plain, reads

LIMIT, STARTS, SECONDS = 500, 50, 0.5
NEIGHBOURS = 100
Start = Callable[[Pod], Early]


def measure(setting: Setting) -> list[Table]:
    """Milliseconds, and I/Os ahead of the limit at the worst moment, of containers that start one after
    the other."""
    with hub_of(setting.folder, min(setting.total, 2**30)) as hub, site(setting.folder, hub) as running:
        tables = _tables(running, "a pod alone on the node")
        for _ in range(NEIGHBOURS):
            pod = running.kubelet.pod()
            pod.add_container()
            running.volumes.inline(pod, plain(LIMIT))
        say(f"{NEIGHBOURS} pods with limits beside it")
        return tables + _tables(running, f"beside {NEIGHBOURS} pods with limits")


def _tables(running: Site, where: str) -> list[Table]:
    pod = running.kubelet.pod()
    shown = running.volumes.inline(pod, plain(LIMIT))
    file, device, limit = parts(shown)[0], shown.device, reads(LIMIT)
    starts: dict[str, Start] = {
        "reads at once": lambda pod: EarlyReader(file, SECONDS).read_from_the_start_of(pod, device, limit)[1],
        "starts a program": lambda pod: started_in(pod, file, SECONDS, device, limit)[1],
    }
    late = Table(
        f"From a new container's cgroup to its limit, {where}, {STARTS} starts, {cgroups()}", "ms", 1
    )
    ahead = Table(f"Direct 4 KiB reads ahead of {LIMIT} IOPS meanwhile", "I/Os")
    for what, start in starts.items():
        found = [start(pod) for _ in range(STARTS)]
        pod.end()
        percentiles(late, what, [1000 * early.limited for early in found])
        percentiles(ahead, what, [max(0.0, early.ahead(LIMIT)) for early in found])
    return [late, ahead]
