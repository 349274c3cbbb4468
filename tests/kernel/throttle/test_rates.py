"""Reads of every kind run at the limit, not below it and not above."""

from __future__ import annotations

import pytest

from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K, DIRECT_16K, MAPPED, SEQUENTIAL, Job, Result
from tests.kernel.kubelet import V2, Kubelet
from tests.kernel.throttle.volumes import IOPS, PAIR, SECONDS, Volumes, limits_of, plain, reads

pytestmark = pytest.mark.kernel


def show(job: Job, result: Result, limit: str) -> None:
    print(
        f"{job.name:>14} at {limit}: {result.iops:.1f} IOPS, {result.bytes_per_second / 2**20:.2f} MiB/s, half seconds {result.series()}"
    )


@pytest.mark.parametrize("iops", IOPS)
def test_random_reads_are_held_at_the_iops_and_sequential_ones_at_the_bytes(
    volumes: Volumes, kubelet: Kubelet, iops: int
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    shown = volumes.inline(pod, plain(iops))
    assert container.limit(shown.device) == reads(iops)
    assert f"{iops} IOPS" in shown.message
    print()
    for job, tolerance in ((DIRECT_4K, 0.03), (DIRECT_16K, 0.05), (MAPPED, 0.05)):
        result = fio.run(container, shown.files if job is MAPPED else shown.file, job, SECONDS, log=True)
        show(job, result, f"{iops} IOPS")
        assert result.held_at(iops, tolerance)
    large = fio.run(container, shown.file, SEQUENTIAL, SECONDS, log=True)
    show(SEQUENTIAL, large, str(reads(iops)))
    assert large.bytes_per_second == pytest.approx(reads(iops).bytes_per_second, rel=0.05)


def test_two_pods_on_one_image_hold_each_their_own(volumes: Volumes, kubelet: Kubelet) -> None:
    pods = [kubelet.pod(), kubelet.pod()]
    containers = [pod.add_container() for pod in pods]
    shown = [volumes.inline(pod, plain(iops)) for pod, iops in zip(pods, PAIR, strict=True)]
    assert len({one.device for one in shown}) == 2 and len(volumes.machine.sealed()) == 1
    running = [
        fio.Fio(container, one.file, DIRECT_4K, SECONDS, log=True)
        for container, one in zip(containers, shown, strict=True)
    ]
    print()
    for iops, result in zip(PAIR, [one.wait() for one in running], strict=True):
        show(DIRECT_4K, result, f"{iops} IOPS")
        assert result.held_at(iops, 0.03)


def test_three_containers_of_a_pod_share_the_limit_or_hold_each_their_own_and_kubelet_is_told_which(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod, iops = kubelet.pod(), IOPS[0]
    containers = [pod.add_container() for _ in range(3)]
    shown = volumes.inline(pod, plain(iops))
    assert limits_of(containers, shown) == [reads(iops)] * 3
    running = [
        fio.Fio(container, shown.file, DIRECT_4K, SECONDS, log=True, clock=V2) for container in containers
    ]
    results = [one.wait() for one in running]
    assert ("each container" in shown.message) != V2
    print()
    if V2:
        sum_of_all = fio.together(results)
        show(DIRECT_4K, sum_of_all, f"{iops} IOPS, all together")
        assert sum_of_all.seconds > SECONDS / 2
        assert sum_of_all.held_at(iops, 0.05)
    else:
        for result in results:
            show(DIRECT_4K, result, f"{iops} IOPS each")
        assert all(result.held_at(iops, 0.03) for result in results)


def test_a_ceiling_of_bytes_alone_leaves_the_iops_free(volumes: Volumes, kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    shown = volumes.inline(pod, {"readBandwidth": "4Mi"})
    limit = container.limit(shown.device)
    assert (limit.iops, limit.bytes_per_second) == (None, 4 * 2**20)
    assert "4 MiB/s" in shown.message
    result = fio.run(container, shown.file, DIRECT_16K, SECONDS / 2, log=True)
    assert result.held_at(4 * 2**20 / 2**14, 0.05)
