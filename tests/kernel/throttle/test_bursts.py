"""Bursts: on a credit that drains and fills again, or metered; and what a killed plugin makes of them.

How many I/Os they come to in which time `make bench` measures (throttle_bursts, throttle_restart).
"""

from __future__ import annotations

import time

import pytest

from csi.performance.limits import IO_SIZE
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K
from tests.kernel.kubelet import Kubelet
from tests.kernel.machine import Machine, until
from tests.kernel.throttle.volumes import IOPS, Volumes, credit_left, metered, plain, reads, watched

pytestmark = pytest.mark.kernel

SUSTAINED = IOPS[0]
BURST = 3 * SUSTAINED
BURST_SECONDS = 4.0
# What AutoPL sustains up to 24 GiB.
BASE, GIB = 3000, 20
DEEP = fio.direct("4k", 32)
# Readers are ended; what they bring about comes much earlier than that.
FOR_EVER, PATIENCE = 600.0, 120.0


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
    for _ in range(2):
        assert container.limit(shown.device) == reads(BURST)
        reader = fio.Fio(container, shown.file, DIRECT_4K, FOR_EVER)
        assert until(lambda: container.limit(shown.device) == reads(SUSTAINED), PATIENCE)
        assert credit_left(shown.message) < credit_of(BURST_SECONDS) / 2
        container.end()
        reader.forget()
        assert until(lambda: container.limit(shown.device) == reads(BURST), PATIENCE)


def test_the_credit_left_is_told_and_is_full_again_after_a_while_and_never_more_than_that(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod, credit = kubelet.pod(), credit_of(1.0)
    container = pod.add_container()
    shown = volumes.inline(pod, credited(1.0))
    assert credit_left(shown.message) == credit
    reader = fio.Fio(container, shown.file, DIRECT_4K, FOR_EVER)
    assert until(lambda: credit_left(shown.message) < credit / 2, PATIENCE)
    container.end()
    reader.forget()
    assert until(lambda: credit_left(shown.message) == credit, PATIENCE)
    time.sleep(2)
    assert credit_left(shown.message) == credit


def test_bursting_as_autopl_has_it_is_metered_and_never_more_than_was_read(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    shown = volumes.inline(pod, {"burstingEnabled": "true", "size": f"{GIB}Gi"})
    limit = container.limit(shown.device)
    assert limit.iops == 1000 * GIB
    assert (limit.bytes_per_second or 0) >= 1000 * GIB * IO_SIZE
    assert metered(shown.message) == 0
    reader = fio.Fio(container, shown.file, DEEP, FOR_EVER)
    assert until(lambda: metered(shown.message), PATIENCE), (
        f"nothing was metered: does this machine's disk give more than {BASE} IOPS?"
    )
    container.end()
    reader.forget()
    assert metered(shown.message) <= container.served(shown.device).ios


def test_a_kill_during_a_burst_lifts_no_limit_and_the_credit_goes_on(
    machine: Machine, volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    credit = credit_of(10 * BURST_SECONDS)
    shown = volumes.inline(pod, credited(10 * BURST_SECONDS))
    reader = fio.Fio(container, shown.file, DIRECT_4K, FOR_EVER)
    with watched(container, shown.device) as seen:
        assert until(lambda: credit_left(shown.message) < 0.9 * credit, PATIENCE)
        before = credit_left(shown.message)
        machine.plugins.node.kill()
        machine.restart_node()
        # What was read while nobody looked is not forgotten.
        assert until(lambda: credit_left(shown.message) < before, PATIENCE)
    container.end()
    reader.forget()
    # Version 1 keeps IOPS and bytes in a file each, and a look may fall between the two writes of one change.
    assert reads(BURST) in seen
    assert {limit.iops for limit in seen} <= {BURST, SUSTAINED}
    assert {limit.bytes_per_second for limit in seen} <= {
        reads(BURST).bytes_per_second,
        reads(SUSTAINED).bytes_per_second,
    }


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
