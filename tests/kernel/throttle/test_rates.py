"""Reads of every kind are counted by the kernel where the limit is.

How fast they are then `make bench` measures (throttle_rates, throttle_pods).
"""

from __future__ import annotations

import pytest

from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K, DIRECT_16K, MAPPED, SEQUENTIAL
from tests.kernel.kubelet import V2, Kubelet, Served, served_to
from tests.kernel.throttle.volumes import IOPS, PAIR, Volumes, limits_of, plain, reads

pytestmark = pytest.mark.kernel

READS = 200


@pytest.mark.parametrize("iops", IOPS)
def test_reads_of_every_kind_go_through_the_limit(volumes: Volumes, kubelet: Kubelet, iops: int) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    shown = volumes.inline(pod, plain(iops))
    assert container.limit(shown.device) == reads(iops)
    assert f"{iops} IOPS" in shown.message
    for job in (DIRECT_4K, DIRECT_16K):
        before = container.served(shown.device)
        result = fio.count(container, shown.file, job, READS)
        assert container.served(shown.device).since(before) == Served(result.ios, result.bytes), job.name
    # The kernel cuts large reads, and reads ahead of what is mapped.
    for job in (MAPPED, SEQUENTIAL):
        before = container.served(shown.device)
        result = fio.count(container, shown.files if job is MAPPED else shown.file, job, 20)
        assert container.served(shown.device).since(before).bytes >= result.bytes, job.name


def test_two_pods_on_one_image_hold_each_their_own(volumes: Volumes, kubelet: Kubelet) -> None:
    pods = [kubelet.pod(), kubelet.pod()]
    containers = [pod.add_container() for pod in pods]
    shown = [volumes.inline(pod, plain(iops)) for pod, iops in zip(pods, PAIR, strict=True)]
    devices = [one.device for one in shown]
    assert len(set(devices)) == 2
    assert len(volumes.machine.sealed()) == 1
    assert [container.limit(device) for container, device in zip(containers, devices, strict=True)] == [
        reads(iops) for iops in PAIR
    ]
    running = [
        fio.Fio(container, one.file, DIRECT_4K, 0, ios=READS)
        for container, one in zip(containers, shown, strict=True)
    ]
    results = [one.wait() for one in running]
    for container, own, other, result in zip(containers, devices, reversed(devices), results, strict=True):
        assert container.served(own) == Served(result.ios, result.bytes)
        assert container.served(other) == Served(0, 0)


def test_three_containers_of_a_pod_share_the_limit_or_hold_each_their_own_and_kubelet_is_told_which(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod, iops = kubelet.pod(), IOPS[0]
    containers = [pod.add_container() for _ in range(3)]
    shown = volumes.inline(pod, plain(iops))
    assert limits_of(containers, shown) == [reads(iops)] * 3
    assert ("each container" in shown.message) != V2
    running = [fio.Fio(container, shown.file, DIRECT_4K, 0, ios=READS) for container in containers]
    results = [one.wait() for one in running]
    # Each is counted where its limit is: with version 2 all of them at the pod.
    if V2:
        assert served_to(pod.path, shown.device).ios == sum(result.ios for result in results)
    else:
        assert [container.served(shown.device).ios for container in containers] == [
            result.ios for result in results
        ]


def test_a_ceiling_of_bytes_alone_leaves_the_iops_free(volumes: Volumes, kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    shown = volumes.inline(pod, {"readBandwidth": "4Mi"})
    limit = container.limit(shown.device)
    assert (limit.iops, limit.bytes_per_second) == (None, 4 * 2**20)
    assert "4 MiB/s" in shown.message
    result = fio.count(container, shown.file, DIRECT_16K, READS)
    assert container.served(shown.device) == Served(result.ios, result.bytes)
