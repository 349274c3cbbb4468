"""Bursts: on a credit that drains and fills again, or metered; and what a killed plugin makes of them."""

from __future__ import annotations

import time

import pytest

from csi.performance.limits import IO_SIZE
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K, Result
from tests.kernel.kubelet import Kubelet
from tests.kernel.machine import Machine, until
from tests.kernel.throttle.volumes import IOPS, Volumes, credit_left, metered, plain, reads, watched

pytestmark = pytest.mark.kernel

SUSTAINED = IOPS[0]
BURST = 3 * SUSTAINED
BURST_SECONDS, REST_SECONDS = 4.0, 3.0
# What AutoPL sustains up to 24 GiB, and how often the counters are looked at meanwhile.
BASE, LOOK_SECONDS, METERED_SECONDS = 3000, 0.25, 10.0
DEEP = fio.direct("4k", 32)


def credited(seconds: float) -> dict[str, str]:
    """Credit for a burst of `seconds`."""
    return {**plain(SUSTAINED), "burstIops": str(BURST), "burstCredit": str(credit_of(seconds))}


def credit_of(seconds: float) -> int:
    """What is above the sustained limit is what drains the credit."""
    return round((BURST - SUSTAINED) * seconds)


def test_credit_gives_the_burst_then_the_sustained_limit_and_another_burst_after_a_rest(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    shown = volumes.inline(pod, credited(BURST_SECONDS))
    assert container.limit(shown.device) == reads(BURST)
    first = fio.run(container, shown.file, DIRECT_4K, 2 * BURST_SECONDS, log=True)
    show("from full credit", first)
    assert (
        first.undisturbed(0.5, BURST_SECONDS - 0.5) >= BURST * 0.97
        and first.between(0.0, BURST_SECONDS) <= BURST * 1.05
    )
    assert first.undisturbed(BURST_SECONDS + 1, first.seconds) >= SUSTAINED * 0.95
    left = credit_left(shown.message)
    assert first.ios == pytest.approx(SUSTAINED * first.seconds + credit_of(BURST_SECONDS) - left, rel=0.05)

    began = time.monotonic()
    assert until(lambda: container.limit(shown.device) == reads(BURST), 10)
    time.sleep(max(0.0, REST_SECONDS - (time.monotonic() - began)))
    second = fio.run(container, shown.file, DIRECT_4K, 3.0, log=True)
    rested = time.monotonic() - began - second.seconds
    show(f"after {rested:.1f} s of rest", second)
    assert second.undisturbed(0.0, 1.0) >= BURST * 0.95
    assert second.ios == pytest.approx(
        SUSTAINED * (second.seconds + rested) + left - credit_left(shown.message), rel=0.05
    )


def show(what: str, result: Result) -> None:
    print(f"\n{what}: {result.ios} I/Os in {result.seconds:.2f} s, half seconds {result.series()}")


def test_the_credit_left_is_told_and_is_full_again_after_a_while_and_never_more_than_that(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod, credit = kubelet.pod(), credit_of(1.0)
    container = pod.add_container()
    shown = volumes.inline(pod, credited(1.0))
    assert credit_left(shown.message) == credit
    fio.run(container, shown.file, DIRECT_4K, 1.5)
    assert credit_left(shown.message) < credit / 2
    assert until(lambda: credit_left(shown.message) == credit, 5 + credit / SUSTAINED)
    time.sleep(2)
    assert credit_left(shown.message) == credit


def test_bursting_as_autopl_has_it_is_metered_as_fio_counts_it(volumes: Volumes, kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    disk = fio.run(container, volumes.inline(pod, {}, "free").file, DEEP, 2.0).iops
    gib = min(20, int(disk / 1200))
    if gib < 10:
        pytest.skip(
            f"this machine's disk gives {disk:.0f} IOPS: too little above the {BASE} that AutoPL's smallest disks sustain"
        )
    shown = volumes.inline(pod, {"burstingEnabled": "true", "size": f"{gib}Gi"})
    limit = container.limit(shown.device)
    assert limit.iops == 1000 * gib and (limit.bytes_per_second or 0) >= 1000 * gib * IO_SIZE
    assert metered(shown.message) == 0
    result = fio.run(container, shown.file, DEEP, METERED_SECONDS, log=True)
    above = sum(max(0, iops - BASE) * LOOK_SECONDS for iops in result.series(LOOK_SECONDS))
    until(lambda: metered(shown.message) == pytest.approx(above, rel=0.002), 3)
    print(
        f"\n{result.iops:.0f} IOPS for {result.seconds:.1f} s, {above:.0f} I/Os above {BASE} IOPS, metered {metered(shown.message)}"
    )
    assert metered(shown.message) == pytest.approx(above, rel=0.02)
    assert result.iops <= 1000 * gib * 1.03


def test_a_kill_during_a_burst_lifts_no_limit_and_the_credit_goes_on(
    machine: Machine, volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    seconds = 4 + 2 * (restarting := restart(machine))
    shown = volumes.inline(pod, credited(seconds))
    began = time.monotonic()
    reader = fio.Fio(container, shown.file, DIRECT_4K, seconds + 3, log=True)
    with watched(container, shown.device) as seen:
        assert until(lambda: credit_left(shown.message) < 0.9 * credit_of(seconds))
        again = restart(machine)
        result = reader.wait()
    # What is unused fills the credit again, also after the reader has ended.
    left, lasted = credit_left(shown.message), time.monotonic() - began
    show(
        f"killed and back after {again:.2f} s (before: {restarting:.2f} s); limits seen {len(seen)} times: {sorted(map(str, set(seen)))}",
        result,
    )
    # Version 1 keeps IOPS and bytes in a file each, and a look may fall between the two writes of one change.
    assert reads(BURST) in seen and {limit.iops for limit in seen} <= {BURST, SUSTAINED}
    assert {limit.bytes_per_second for limit in seen} <= {
        reads(BURST).bytes_per_second,
        reads(SUSTAINED).bytes_per_second,
    }
    # A change of the limit lets some I/O through (in the guest half as much again, for half a second); without one it would be thousands.
    assert max(result.series()) <= BURST * 1.6
    assert result.ios == pytest.approx(SUSTAINED * lasted + credit_of(seconds) - left, rel=0.05)


def restart(machine: Machine) -> float:
    """Kill the node plugin; seconds until it answers again."""
    began = time.monotonic()
    machine.plugins.node.kill()
    machine.restart_node()
    return time.monotonic() - began


def test_a_container_that_starts_while_the_plugin_is_dead_is_limited_when_it_is_back(
    machine: Machine, volumes: Volumes, kubelet: Kubelet
) -> None:
    pod, limit = kubelet.pod(), reads(SUSTAINED)
    shown = volumes.inline(pod, plain(SUSTAINED))
    machine.plugins.node.kill()
    container = pod.add_container()
    machine.restart_node()
    assert until(lambda: container.limit(shown.device) == limit)
    assert until(lambda: f"{SUSTAINED} IOPS" in shown.message)
