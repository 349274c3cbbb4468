"""What a cgroup hierarchy must do: one suite for the real one of this machine (version 1 or 2) and for the
fake that other tests stand on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.detect import detect_hierarchy
from csi.linux.cgroups.hierarchy import CgroupHierarchy, ReadCount
from csi.linux.loop_devices import KernelLoopDevices
from csi.manifest.manifest import build_manifest
from csi.performance.limits import UNLIMITED, Rate
from tests.csi.images.trees import file, image_of
from tests.csi.linux.cgroups.fakes import FakeHierarchy
from tests.kernel.readers import in_cgroup

RATE, OTHER = Rate(500, 8_192_000), Rate(70, 1_000_000)


@dataclass
class Place:
    """A hierarchy, a pod's cgroup with a container in it, and two devices."""

    hierarchy: CgroupHierarchy
    pod: Path
    devices: tuple[str, str]
    paths: tuple[str, str]

    @property
    def container(self) -> Path:
        return self.pod / "c1"

    def read(self, ios: int) -> None:
        """Have a process of the container read from the first device, 4 KiB at a time and past the page
        cache."""
        if isinstance(self.hierarchy, FakeHierarchy):
            self.hierarchy.read(self.container, self.devices[0], ios)
        else:
            in_cgroup(
                self.container,
                [
                    "dd",
                    f"if={self.paths[0]}",
                    "of=/dev/null",
                    "bs=4096",
                    f"count={ios}",
                    "iflag=direct",
                    "status=none",
                ],
            )


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "fake":
        fake = FakeHierarchy(tmp_path / "cgroups")
        (fake.root / "pod/c1").mkdir(parents=True)
        yield Place(fake, fake.root / "pod", ("7:1", "7:2"), ("", ""))
        return
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: the real cgroups' part of this suite, because it needs root")
    hierarchy = detect_hierarchy(Path("/sys/fs/cgroup"))
    image = tmp_path / "image"
    image_of(build_manifest([file("a", 1_000_000)], {}), image)
    pod = hierarchy.root / f"datacache-suite-{os.getpid()}" / "pod"
    (pod / "c1").mkdir(parents=True)
    loops = KernelLoopDevices(1 << 20)
    try:
        with loops.attach(image) as first, loops.attach(image) as second:
            numbers = [
                Path(f"/sys/block/{Path(path).name}/dev").read_text().strip() for path in (first, second)
            ]
            yield Place(hierarchy, pod, (numbers[0], numbers[1]), (first, second))
    finally:
        for folder in (pod / "c1", pod, pod.parent):
            if folder.exists():
                folder.rmdir()


def limited(place: Place) -> Path:
    """The cgroup that a limit on the pod is to be put on, so that it binds the container."""
    place.hierarchy.enable_throttling(place.pod)
    return place.container if place.hierarchy.is_flat else place.pod


def test_a_limit_is_in_force_as_it_was_asked(place: Place) -> None:
    cgroup = limited(place)
    assert place.hierarchy.read_limit(cgroup, place.devices[0]) == UNLIMITED
    assert place.hierarchy.set_limit(cgroup, place.devices[0], RATE)
    assert place.hierarchy.read_limit(cgroup, place.devices[0]) == RATE


def test_the_same_limit_again_is_not_written(place: Place) -> None:
    cgroup = limited(place)
    place.hierarchy.set_limit(cgroup, place.devices[0], RATE)
    assert not place.hierarchy.set_limit(cgroup, place.devices[0], RATE)


@pytest.mark.parametrize("new", [OTHER, Rate(500, None), Rate(None, 1_000_000), UNLIMITED])
def test_a_limit_is_replaced_or_removed(place: Place, new: Rate) -> None:
    cgroup = limited(place)
    place.hierarchy.set_limit(cgroup, place.devices[0], RATE)
    assert place.hierarchy.set_limit(cgroup, place.devices[0], new)
    assert place.hierarchy.read_limit(cgroup, place.devices[0]) == new


def test_more_iops_than_the_kernel_can_hold_are_no_limit_and_written_once(place: Place) -> None:
    cgroup = limited(place)
    for iops in (2**32 - 1, 5 * 10**9):
        place.hierarchy.set_limit(cgroup, place.devices[0], Rate(iops, 2**44))
        assert not place.hierarchy.set_limit(cgroup, place.devices[0], Rate(iops, 2**44))
    assert place.hierarchy.set_limit(cgroup, place.devices[0], Rate(2**32 - 2, 2**44))
    assert not place.hierarchy.set_limit(cgroup, place.devices[0], Rate(2**32 - 2, 2**44))


def test_devices_are_limited_each_by_itself(place: Place) -> None:
    cgroup = limited(place)
    for device, rate in zip(place.devices, (RATE, OTHER), strict=True):
        place.hierarchy.set_limit(cgroup, device, rate)
    place.hierarchy.set_limit(cgroup, place.devices[0], UNLIMITED)
    assert place.hierarchy.read_limit(cgroup, place.devices[1]) == OTHER


def test_what_a_container_reads_is_counted(place: Place) -> None:
    cgroup = limited(place)
    place.hierarchy.set_limit(cgroup, place.devices[0], Rate(100_000, 2**40))
    before = place.hierarchy.read_count(cgroup, place.devices[0])
    place.read(50)
    assert place.hierarchy.read_count(cgroup, place.devices[0]) - before == ReadCount(50, 50 * 4096)
    assert place.hierarchy.read_count(cgroup, place.devices[1]) == ReadCount()


def test_a_cgroup_that_is_gone_is_no_error(place: Place) -> None:
    gone = place.pod / "gone"
    assert not place.hierarchy.set_limit(gone, place.devices[0], RATE)
    assert place.hierarchy.read_limit(gone, place.devices[0]) == UNLIMITED
    assert place.hierarchy.read_count(gone, place.devices[0]) == ReadCount()
    place.hierarchy.enable_throttling(place.pod.parent / "gone")


@pytest.mark.kernel
def test_a_limit_that_the_kernel_refuses_is_said(place: Place) -> None:
    cgroup = limited(place)
    if isinstance(place.hierarchy, FakeHierarchy):
        place.hierarchy.refusal = "the kernel refuses"
    with pytest.raises(UnsupportedByNode, match="the kernel refuses"):
        place.hierarchy.enable_throttling(place.pod)
        place.hierarchy.set_limit(cgroup, "4095:77", RATE)


def test_a_machine_without_cgroups_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByNode, match="no cgroups with block I/O throttling"):
        detect_hierarchy(tmp_path)
    (tmp_path / "blkio").mkdir()
    with pytest.raises(UnsupportedByNode, match="CONFIG_BLK_DEV_THROTTLING"):
        detect_hierarchy(tmp_path)
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    with pytest.raises(UnsupportedByNode, match="no controller io"):
        detect_hierarchy(tmp_path)
