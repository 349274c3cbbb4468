"""Bursts on a credit, and bursts that are metered, beside what fio has counted."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table
from tests.benchmarks.throttled import Site, cgroups, hub_of, parts, site, within
from tests.benchmarks.volume import Setting
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K
from tests.kernel.machine import until
from tests.kernel.throttle.volumes import metered, plain

SUSTAINED, BURST, CREDIT = 500, 3_000, 25_000
SECONDS, REST_SECONDS, AGAIN_SECONDS = 20.0, 10.0, 5.0
GIB, PROVISIONED, BASE = 20, 5_000, 3_000


def measure(setting: Setting) -> Iterator[Table]:
    """I/Os a second in the phases of a run, and I/Os of whole runs."""
    with hub_of(setting.folder, setting.total) as hub, site(setting.folder, hub) as running:
        yield from _credit(running)
        yield _metered(running)


def _credit(running: Site) -> Iterator[Table]:
    pod = running.kubelet.pod()
    container = pod.add_container()
    shown = running.volumes.inline(
        pod, {**plain(SUSTAINED), "burstIops": str(BURST), "burstCredit": str(CREDIT)}
    )
    file, lasts = parts(shown)[0], CREDIT / (BURST - SUSTAINED)
    first = fio.run(container, file, DIRECT_4K, SECONDS, log=True)
    began = time.monotonic()
    time.sleep(REST_SECONDS)
    second = fio.run(container, file, DIRECT_4K, AGAIN_SECONDS, log=True)
    rested = time.monotonic() - began - second.seconds
    say(f"{first.series(1.0)}, {rested:.1f} s of rest, {second.series()}")

    rates = Table(f"A credit of {CREDIT} I/Os above {SUSTAINED} IOPS, {cgroups()}", "IOPS")
    within(rates, "burst from full credit", first.between(0.5, lasts - 0.5), BURST, 0.03)
    within(rates, "then sustained", first.between(lasts + 0.5, first.seconds), SUSTAINED, 0.03)
    within(rates, f"burst again after {rested:.1f} s of rest", second.between(0.25, 1.25), BURST, 0.03)
    yield rates
    whole = Table("The same in whole", "I/Os")
    within(whole, f"the first {first.seconds:.1f} s", first.ios, SUSTAINED * first.seconds + CREDIT, 0.05)
    total = first.seconds + rested + second.seconds
    within(whole, f"all {total:.1f} s", first.ios + second.ios, SUSTAINED * total + CREDIT, 0.05)
    yield whole


def _metered(running: Site) -> Table:
    pod = running.kubelet.pod()
    container = pod.add_container()
    bought = {"provisionedIops": str(PROVISIONED), "burstingEnabled": "true", "size": f"{GIB}Gi"}
    shown = running.volumes.inline(pod, bought)
    result = fio.run(container, parts(shown)[0], fio.direct("4k", 64), SECONDS)
    above = result.ios - (BASE + PROVISIONED) * result.seconds
    until(lambda: abs(metered(shown.message) / above - 1) < 0.001, 3)
    table = Table(
        f"AutoPL of {GIB} GiB with {PROVISIONED} IOPS provisioned and bursting, {SECONDS:.0f} s", "I/Os"
    )
    within(
        table, f"metered above {BASE + PROVISIONED} IOPS, as fio counts", metered(shown.message), above, 0.02
    )
    within(table, "read", result.ios, 1000 * GIB * result.seconds, 0.03)
    return table
