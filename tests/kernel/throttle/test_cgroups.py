"""The limit finds the pod's cgroups, wherever kubelet makes them and whenever they come, and goes with the
volume."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from csi.performance.limits import Rate
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K
from tests.kernel.kubelet import V2, Container, Driver, Kubelet, Qos, limit_of, remove, served_to
from tests.kernel.machine import until
from tests.kernel.throttle.early import EarlyReader
from tests.kernel.throttle.volumes import IOPS, SECONDS, Shown, Volumes, limits_of, plain, reads

pytestmark = pytest.mark.kernel

LIMIT, READS = IOPS[0], 200
# What comes comes much earlier.
PATIENCE = 60


def comes(container: Container, shown: Shown, limit: Rate) -> bool:
    """Whether the container is limited soon."""
    return bool(until(lambda: container.limit(shown.device) == limit, PATIENCE))


@pytest.mark.parametrize("driver", Driver, ids=lambda driver: driver.name.lower())
@pytest.mark.parametrize("qos", Qos, ids=lambda qos: qos.name.lower())
def test_the_pod_its_containers_and_their_successors_may_come_after_the_volume(
    volumes: Volumes, kubelet: Kubelet, driver: Driver, qos: Qos
) -> None:
    pod = kubelet.pod(qos, driver, cgroup=False)
    shown = volumes.inline(pod, plain(LIMIT))
    device = shown.device
    first = pod.add_container()
    assert comes(first, shown, reads(LIMIT))
    second = pod.add_container()
    assert comes(second, shown, reads(LIMIT))
    third = pod.restart_container(first)
    assert comes(third, shown, reads(LIMIT))
    assert f"{LIMIT} IOPS" in shown.message
    volumes.take(shown)
    assert kubelet.ruled(device) == []


@pytest.mark.parametrize("driver", Driver, ids=lambda driver: driver.name.lower())
@pytest.mark.parametrize("qos", Qos, ids=lambda qos: qos.name.lower())
def test_the_limit_is_there_before_the_answer_where_the_pod_is(
    volumes: Volumes, kubelet: Kubelet, driver: Driver, qos: Qos
) -> None:
    pod = kubelet.pod(qos, driver)
    containers = [pod.add_container(), pod.add_container()]
    assert limits_of(containers, volumes.inline(pod, plain(LIMIT))) == [reads(LIMIT)] * 2


def test_a_node_with_both_spellings_of_cgroups_limits_each_pod_where_it_is(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pods = [kubelet.pod(driver=driver) for driver in Driver]
    containers = [pod.add_container() for pod in pods]
    shown = volumes.inline(pods[0], plain(LIMIT))
    assert limits_of(containers, shown) == [reads(LIMIT), Rate(), Rate()]


def test_a_container_with_cgroups_of_its_own_gets_no_more(volumes: Volumes, kubelet: Kubelet) -> None:
    pod = kubelet.pod(driver=Driver.SYSTEMD)
    container = pod.add_container()
    shown = volumes.inline(pod, plain(LIMIT))
    inner = Container(container.path / "init.scope")
    inner.path.mkdir()
    if not V2:
        assert until(lambda: limit_of(inner.path, shown.device) == reads(LIMIT), PATIENCE)
    result = fio.count(inner, shown.file, DIRECT_4K, READS)
    assert served_to(pod.path if V2 else inner.path, shown.device).ios == result.ios
    volumes.clear()
    remove(inner.path)


def test_a_container_that_reads_from_its_first_moment_on_is_limited(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    """What it reads before is little, which `make bench` measures (throttle_starts)."""
    pod = kubelet.pod(cgroup=False)
    shown = volumes.inline(pod, plain(LIMIT))
    for what in ("pod and container", "one more container", "one more container"):
        container, early = EarlyReader(shown.file, SECONDS / 2).read_from_the_start_of(
            pod, shown.device, reads(LIMIT)
        )
        assert container.limit(shown.device) == reads(LIMIT), what
        assert len(early.moments) > 1, what
        container.end()


def test_limits_go_with_the_volume_and_leave_a_pod_that_lives_on_as_it_was(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod, other = kubelet.pod(), kubelet.pod()
    container, untouched = pod.add_container(), other.add_container()
    shown, kept = volumes.inline(pod, plain(LIMIT)), volumes.inline(other, plain(LIMIT))
    device = shown.device
    assert kept.device == device
    volumes.take(shown)
    assert container.limit(device) == Rate()
    assert untouched.limit(device) == reads(LIMIT)
    late = pod.add_container()
    # The other pod's new container shows that the one that is left alone had its time.
    assert comes(other.add_container(), kept, reads(LIMIT))
    assert late.limit(device) == Rate()


def test_two_volumes_of_a_pod_in_one_class_add_up_and_the_one_that_goes_leaves_the_others(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    first, second = (volumes.inline(pod, plain(LIMIT), name) for name in ("first", "second"))
    device = second.device
    assert first.device == device
    assert container.limit(device) == reads(2 * LIMIT)
    results = [fio.count(container, one.file, DIRECT_4K, READS) for one in (first, second)]
    assert container.served(device).ios == sum(result.ios for result in results)
    volumes.take(first)
    assert container.limit(device) == reads(LIMIT)
    volumes.take(second)
    assert container.limit(device) == Rate()


def test_volumes_of_different_classes_of_one_pod_do_not_add_up(volumes: Volumes, kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    slow, fast, free = (
        volumes.inline(pod, plain(LIMIT), "slow"),
        volumes.inline(pod, plain(2 * LIMIT), "fast"),
        volumes.inline(pod, {}, "free"),
    )
    assert [container.limit(one.device) for one in (slow, fast, free)] == [
        reads(LIMIT),
        reads(2 * LIMIT),
        Rate(),
    ]


@pytest.mark.skipif(
    not (V2 and Path("/run/systemd/system").exists()),
    reason="no systemd keeps cgroups of version 2 on this machine",
)
def test_a_reload_of_systemd_that_takes_the_controller_away_does_not_lift_the_limit(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    """systemd knows the slices of a kubelet with its driver, and at a reload sets their controllers to
    what it was asked for itself."""
    pod = kubelet.pod(driver=Driver.SYSTEMD)
    container = pod.add_container()
    shown = volumes.inline(pod, plain(LIMIT))
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    # What systemd does after the reload's end, it does within a second.
    time.sleep(1)
    assert comes(container, shown, reads(LIMIT))


@pytest.mark.skipif(not V2, reason="cgroups of version 1 have no subtree_control")
def test_a_controller_that_somebody_takes_away_above_the_pod_comes_back_with_its_limit(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod(driver=Driver.SYSTEMD)
    container = pod.add_container()
    shown = volumes.inline(pod, plain(LIMIT))
    (pod.path.parent / "cgroup.subtree_control").write_text("-io")
    assert comes(container, shown, reads(LIMIT))
