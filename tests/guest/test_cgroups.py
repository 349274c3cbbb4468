"""What throttling stands on where cgroup v2 is all there is and systemd keeps it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi.linux.loop_devices import KernelLoopDevices
from csi.linux.mounts import KernelMountTable
from csi.manifest.manifest import build_manifest
from tests.csi.images.trees import file, image_of
from tests.guest.slices import SystemdPod, controllers, systemctl
from tests.kernel import fio
from tests.kernel.fio import DIRECT_4K
from tests.kernel.kubelet import ROOT, limit_of
from tests.kernel.machine import MIB

pytestmark = pytest.mark.guest

IOPS = 300


@dataclass(frozen=True)
class Shown:
    """A large file of a mounted image, and the number ("major:minor") of its loop device."""

    file: Path
    device: str

    def limit(self, pod: SystemdPod) -> None:
        """Set the limit on the whole pod."""
        (pod.path / "io.max").write_text(f"{self.device} riops={IOPS} rbps={IOPS * 16384}")

    def read(self, cgroup: Path) -> tuple[int, int]:
        """What a cgroup and those below it have read from the device: I/Os, bytes."""
        lines = [line.split() for line in (cgroup / "io.stat").read_text().splitlines()]
        words = dict(word.split("=") for words in lines if words[0] == self.device for word in words[1:])
        return int(words.get("rios", 0)), int(words.get("rbytes", 0))


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    """An EROFS image on a direct-I/O loop device."""
    image, target, mounts = tmp_path / "image", tmp_path / "mounted", KernelMountTable()
    target.mkdir()
    image_of(build_manifest([file("large", 16 * MIB)], {}), image)
    with KernelLoopDevices(2 * MIB).attach(image) as device:
        mounts.mount_image(device, target)
    assert Path(f"/sys/block/{Path(device).name}/loop/dio").read_text().strip() == "1"
    yield Shown(target / "large", Path(f"/sys/block/{Path(device).name}/dev").read_text().strip())
    mounts.unmount(target)


def pod(accounted: bool) -> SystemdPod:
    """One that systemd has not seen before: it remembers slices that were stopped."""
    return SystemdPod(str(uuid.uuid4()), accounted)


def test_the_machine_has_systemd_and_cgroup_v2_alone_with_the_io_controller() -> None:
    kinds = {line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert "cgroup2" in kinds
    assert "cgroup" not in kinds
    assert "io" in (ROOT / "cgroup.controllers").read_text().split()
    assert Path("/proc/1/comm").read_text().strip() == "systemd"


def test_a_limit_on_the_pods_slice_is_where_one_container_and_two_together_are_counted(shown: Shown) -> None:
    """How fast they are then `make bench` measures (throttle_pods)."""
    with pod(accounted=True) as burstable:
        one, other = burstable.add_container(), burstable.add_container()
        shown.limit(burstable)
        assert limit_of(burstable.path, shown.device).iops == IOPS
        for containers in ([one], [one, other]):
            before, _ = shown.read(burstable.path)
            readers = [fio.Fio(container, shown.file, DIRECT_4K, 0, ios=IOPS) for container in containers]
            results = [reader.wait() for reader in readers]
            ios, _ = shown.read(burstable.path)
            assert ios - before == sum(result.ios for result in results)


def test_the_pods_counter_agrees_with_fio(shown: Shown) -> None:
    with pod(accounted=True) as burstable:
        container = burstable.add_container()
        result = fio.run(container, shown.file, DIRECT_4K, 2)
        assert shown.read(burstable.path) == (result.ios, result.bytes)


def test_kubelets_slices_have_the_controller_and_keep_a_limit_through_a_reload(shown: Shown) -> None:
    with pod(accounted=True) as burstable:
        burstable.add_container()
        assert all(
            "io" in controllers(parent)
            for parent in (ROOT, *(burstable.path.parents[level] for level in (0, 1)))
        )
        shown.limit(burstable)
        systemctl("daemon-reload")
        burstable.add_container()
        assert limit_of(burstable.path, shown.device).iops == IOPS


def test_slices_without_accounting_lack_the_controller_and_lose_a_limit_with_a_reload(shown: Shown) -> None:
    with pod(accounted=False) as burstable:
        burstable.add_container()
        assert not (burstable.path / "io.max").exists()
        for level in (2, 1, 0):
            (burstable.path.parents[level] / "cgroup.subtree_control").write_text("+io")
        shown.limit(burstable)
        assert limit_of(burstable.path, shown.device).iops == IOPS
        systemctl("daemon-reload")
        assert limit_of(burstable.path, shown.device).iops is None
