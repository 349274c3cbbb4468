"""A live volume gets other limits: its pods notice within seconds, and their mounts do not notice at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.performance.limits import Rate
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K
from tests.kernel.kubelet import Container, Kubelet
from tests.kernel.machine import Machine, until
from tests.kernel.throttle.volumes import IOPS, Shown, Volumes, plain, reads

pytestmark = pytest.mark.kernel

LIMIT = IOPS[0]
# A change comes within seconds, which `make bench` measures (throttle_pods).
PATIENCE = 60.0
STEPS = {
    "lower": (plain(LIMIT // 2), reads(LIMIT // 2)),
    "higher": (plain(2 * LIMIT), reads(2 * LIMIT)),
    "none": ({"readIops": ""}, Rate()),
    "some again": (plain(LIMIT), reads(LIMIT)),
    "with a burst": ({"burstIops": str(3 * LIMIT), "burstCredit": str(10 * LIMIT)}, reads(3 * LIMIT)),
    "without": ({"burstIops": "", "burstCredit": ""}, reads(LIMIT)),
    "another kind": ({"readIops": "", "performanceLevel": "PL1"}, Rate(1850, int(120.5 * 2**20))),
}


def mount_id(target: Path) -> str:
    """The kernel's number of the mount at `target` (proc(5), mountinfo)."""
    (line,) = (
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(target)
    )
    return line.split()[0]


def changes(container: Container, shown: Shown, limit: Rate) -> bool:
    """Whether the limit becomes that one."""
    return bool(until(lambda: container.limit(shown.device) == limit, PATIENCE))


@pytest.mark.parametrize("first", [plain(LIMIT), {}], ids=["from some", "from none"])
def test_a_modified_volume_changes_the_limits_of_its_running_pods_and_no_mount(
    volumes: Volumes, kubelet: Kubelet, first: dict[str, str]
) -> None:
    pods = [kubelet.pod(), kubelet.pod()]
    containers = [pod.add_container() for pod in pods]
    volume = volumes.make(first)
    shown = [volumes.show(volume, pod) for pod in pods]
    mounts = [mount_id(one.target) for one in shown]
    for step, (parameters, limit) in STEPS.items():
        volumes.machine.modify(volume, parameters)
        assert all(
            changes(container, one, limit) for container, one in zip(containers, shown, strict=True)
        ), step
        assert all((str(limit.iops) in one.message) == (limit.iops is not None) for one in shown), step
    assert [mount_id(one.target) for one in shown] == mounts


def test_a_reader_goes_on_through_the_new_limit(volumes: Volumes, kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    volume = volumes.make(plain(LIMIT))
    shown = volumes.show(volume, pod)
    reader = fio.Fio(container, shown.file, DIRECT_4K, 600.0)
    for limit in (LIMIT // 2, 2 * LIMIT):
        volumes.machine.modify(volume, plain(limit))
        assert changes(container, shown, reads(limit))
        before = container.served(shown.device)
        assert until(lambda before=before: container.served(shown.device).since(before).ios > 100)
        assert reader.process.poll() is None
    container.end()
    reader.forget()


def test_a_change_while_the_node_plugin_was_dead_is_found_when_it_is_back(
    machine: Machine, volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    volume = volumes.make(plain(LIMIT))
    shown = volumes.show(volume, pod)
    machine.plugins.node.kill()
    machine.modify(volume, plain(2 * LIMIT))
    machine.restart_node()
    assert until(lambda: container.limit(shown.device) == reads(2 * LIMIT))


def test_a_pod_that_comes_after_the_change_gets_the_new_limits_though_the_context_of_its_volume_has_the_old(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    early, late = kubelet.pod(), kubelet.pod()
    volume = volumes.make(plain(LIMIT))
    volumes.show(volume, early)
    volumes.machine.modify(volume, plain(2 * LIMIT))
    container = late.add_container()
    assert changes(container, volumes.show(volume, late), reads(2 * LIMIT))


def test_changing_one_volume_leaves_another_of_the_same_content_and_limits_alone(
    volumes: Volumes, kubelet: Kubelet
) -> None:
    pod = kubelet.pod()
    container = pod.add_container()
    changed, kept = volumes.make(plain(LIMIT)), volumes.make(plain(LIMIT))
    first, second = volumes.show(changed, pod, "first"), volumes.show(kept, pod, "second")
    volumes.machine.modify(changed, plain(2 * LIMIT))
    assert changes(container, first, reads(2 * LIMIT))
    assert container.limit(second.device) == reads(LIMIT)
