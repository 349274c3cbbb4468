"""What 200 throttled volumes cost a node plugin that has nothing to do: CPU and memory, beside 200 volumes
without limits."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.throttled import Site, hub_of, site
from tests.benchmarks.volume import Setting
from tests.kernel.throttle.volumes import plain
from tests.origins.hub import Hub

VOLUMES, SETTLE_SECONDS, IDLE_SECONDS = 200, 65, 60
# A device of its own for each: the class of a persistent volume is the volume itself.
KINDS: Mapping[str, Mapping[str, str]] = {
    "without limits": {},
    "with limits": plain(500),
    "with a burst credit": {**plain(500), "burstIops": "3000", "burstCredit": "6000"},
}


def measure(setting: Setting) -> list[Table]:
    """Percent of one core over an idle minute, and resident megabytes (10**6 bytes, VmRSS)."""
    with hub_of(setting.folder, 2**26) as hub:
        found = {kind: _idle(setting, hub, performance) for kind, performance in KINDS.items()}
    cpu = Table(
        f"CPU of the node plugin, idle with {VOLUMES} published persistent volumes, over {IDLE_SECONDS} s",
        "% of a core",
        2,
    )
    memory = Table("Its resident memory then", "MB", 1)
    for kind, (share, resident) in found.items():
        cpu.row(kind, Series((share,)), at_most(1, " %"))
        memory.row(kind, Series((resident,)))
        if kind != "without limits":
            memory.row(
                "  more than without", Series((resident - found["without limits"][1],)), at_most(10, " MB")
            )
    return [cpu, memory]


def _idle(setting: Setting, hub: Hub, performance: Mapping[str, str]) -> tuple[float, float]:
    """(percent of a core, resident MB) of a fresh node plugin; its warm workers have ended by then."""
    with site(setting.folder, hub) as running:
        for _ in range(VOLUMES):
            _publish(running, performance)
        say(f"{VOLUMES} published; idle for {SETTLE_SECONDS} + {IDLE_SECONDS} s")
        time.sleep(SETTLE_SECONDS)
        node = running.machine.plugins.node
        before, began = _cpu_seconds(node.pid), time.monotonic()
        time.sleep(IDLE_SECONDS)
        return 100 * (_cpu_seconds(node.pid) - before) / (
            time.monotonic() - began
        ), node.resident_bytes() / 1e6


def _publish(running: Site, performance: Mapping[str, str]) -> None:
    pod = running.kubelet.pod()
    for _ in range(2):
        pod.add_container()
    running.volumes.show(running.volumes.make(performance), pod)


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), stat: fields 14 and 15)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
