"""What mounts and loop devices must do: one suite for the real kernel and for the fake that other tests
stand on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi.errors import Busy, DataCacheError, UnsupportedByNode
from csi.linux.loop_devices import KernelLoopDevices, LoopDevices, default_read_ahead
from csi.linux.mounts import KernelMountTable, Mount, MountTable, find_mount
from csi.manifest.manifest import build_manifest
from tests.csi.images.trees import file, image_of
from tests.csi.linux.fakes import MARKER, FakeKernel, FakeLoops, FakeMounts
from tests.plugins import unmount_below

FLAGS = {"ro", "nosuid", "nodev"}
_SECONDS = 60.0


@dataclass
class Kernel:
    """`using(path)` has something work below a path for a block."""

    mounts: MountTable
    loops: LoopDevices
    using: Callable[[Path], AbstractContextManager[None]]

    def mounted(self, path: Path) -> Mount | None:
        return find_mount(self.mounts.list_mounts(), path)

    def mount(self, image: Path, target: Path) -> str:
        target.mkdir(exist_ok=True)
        with self.loops.attach(image) as device:
            self.mounts.mount_image(device, target)
        return device


@contextmanager
def opened(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(fd)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kernel]:
    if request.param == "fake":
        fake = FakeKernel(tmp_path / "kernel.json")
        yield Kernel(FakeMounts(fake), FakeLoops(fake), fake.using)
        return
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: the real kernel's part of this suite, because it needs root")
    yield Kernel(KernelMountTable(), KernelLoopDevices(1 << 20), opened)
    unmount_below(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    image_of(build_manifest([file("a", 5000), file("d/b", 10)], {}), path)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def test_an_image_is_mounted_read_only_and_its_device_stays_with_the_mount(
    kernel: Kernel, image: Path, target: Path
) -> None:
    device = kernel.mount(image, target)
    mount = kernel.mounted(target)
    assert mount is not None
    assert (mount.source, mount.fs_type) == (device, "erofs")
    assert mount.options >= FLAGS
    assert mount.device.startswith("7:")
    assert kernel.loops.is_backed_by(device, image)
    assert not kernel.loops.wait_until_free(device, 0.05)


def test_the_device_frees_itself_with_the_last_mount(kernel: Kernel, image: Path, target: Path) -> None:
    device = kernel.mount(image, target)
    kernel.mounts.unmount(target)
    assert kernel.loops.wait_until_free(device, _SECONDS)
    assert kernel.mounted(target) is None
    assert not kernel.loops.is_backed_by(device, image)


def test_a_device_that_nothing_was_mounted_from_frees_itself(kernel: Kernel, image: Path) -> None:
    with kernel.loops.attach(image) as device:
        assert kernel.loops.is_backed_by(device, image)
    assert kernel.loops.wait_until_free(device, _SECONDS)


def test_two_devices_over_one_image_are_two(kernel: Kernel, image: Path) -> None:
    with kernel.loops.attach(image) as one, kernel.loops.attach(image) as other:
        assert one != other
        assert kernel.loops.is_backed_by(one, image)
        assert kernel.loops.is_backed_by(other, image)


def test_a_device_is_known_by_the_file_itself_and_not_by_its_name(
    kernel: Kernel, image: Path, tmp_path: Path
) -> None:
    copy, moved = tmp_path / "copy", tmp_path / "moved"
    copy.write_bytes(image.read_bytes())
    with kernel.loops.attach(image) as device:
        assert not kernel.loops.is_backed_by(device, copy)
        image.rename(moved)
        assert kernel.loops.is_backed_by(device, moved)
        assert not kernel.loops.is_backed_by(device, image)
        copy.rename(image)
        assert not kernel.loops.is_backed_by(device, image)
    assert not kernel.loops.is_backed_by("/dev/loop999999", moved)


def test_a_bind_shows_the_same_super_block_read_only(
    kernel: Kernel, image: Path, target: Path, tmp_path: Path
) -> None:
    base, deep = tmp_path / "base", tmp_path / "deep"
    device = kernel.mount(image, base)
    for source, path in ((base, target), (target, deep)):
        path.mkdir(exist_ok=True)
        kernel.mounts.bind_mount(source, path)
        shown, mount = kernel.mounted(path), kernel.mounted(base)
        assert shown
        assert mount
        assert (shown.device, shown.source, shown.fs_type) == (
            mount.device,
            device,
            "erofs",
        )
        assert shown.options >= FLAGS


def test_a_bind_outlives_the_mount_it_was_made_from_and_holds_the_device(
    kernel: Kernel, image: Path, target: Path, tmp_path: Path
) -> None:
    device = kernel.mount(image, tmp_path / "base")
    kernel.mounts.bind_mount(tmp_path / "base", target)
    kernel.mounts.unmount(tmp_path / "base")
    assert kernel.mounted(target)
    assert not kernel.loops.wait_until_free(device, 0.05)
    kernel.mounts.unmount(target)
    assert kernel.loops.wait_until_free(device, _SECONDS)


def test_a_marker_is_empty_read_only_and_of_a_device_of_its_own(
    kernel: Kernel, image: Path, target: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    kernel.mount(image, tmp_path / "base")
    for path in (target, other):
        kernel.mounts.mount_marker("datacache:label", path)
    mounts = [kernel.mounted(path) for path in (target, other, tmp_path / "base")]
    assert len({mount.device for mount in mounts if mount}) == 3
    for path, mount in zip((target, other), mounts, strict=False):
        assert mount
        assert mount.fs_type == "tmpfs"
        assert mount.options >= {*FLAGS, "noexec"}
        assert [entry.name for entry in path.iterdir() if entry.name != MARKER] == []
        kernel.mounts.unmount(path)
        assert kernel.mounted(path) is None


@pytest.mark.parametrize(
    "label",
    [
        "datacache:/a/b",
        "with space",
        "tab\there",
        "line\nend",
        "back\\slash",
        "ha#sh",
        "größe",
        "o - dash",
        "\\040",
    ],
)
def test_the_label_of_a_marker_comes_out_of_the_table_as_it_went_in(
    kernel: Kernel, target: Path, label: str
) -> None:
    kernel.mounts.mount_marker(label, target)
    mount = kernel.mounted(target)
    assert mount
    assert mount.source == label


def test_a_marker_hides_a_mount_until_it_is_taken_away(kernel: Kernel, image: Path, target: Path) -> None:
    device = kernel.mount(image, target)
    kernel.mounts.mount_marker("label", target)
    mount = kernel.mounted(target)
    assert mount
    assert mount.source == "label"
    kernel.mounts.unmount(target)
    mount = kernel.mounted(target)
    assert mount
    assert mount.source == device


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: a marker is written to, because that needs root")
def test_nobody_writes_to_a_marker(target: Path) -> None:
    (target / "hidden").touch()
    KernelMountTable().mount_marker("label", target)
    try:
        assert list(target.iterdir()) == []
        assert target.stat().st_mode & 0o777 == 0o555
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").touch()
    finally:
        KernelMountTable().unmount(target)


def test_of_several_mounts_on_one_target_the_last_is_seen_and_goes_first(
    kernel: Kernel, image: Path, target: Path
) -> None:
    devices = [kernel.mount(image, target) for _ in range(2)]
    for device in reversed(devices):
        mount = kernel.mounted(target)
        assert mount
        assert mount.source == device
        kernel.mounts.unmount(target)
    assert kernel.mounted(target) is None


def test_unmounting_what_is_not_mounted_is_no_error(kernel: Kernel, target: Path, tmp_path: Path) -> None:
    for path in (target, tmp_path / "missing", tmp_path / "missing/deep"):
        kernel.mounts.unmount(path)


def test_what_is_in_use_is_busy_and_stays_mounted(kernel: Kernel, image: Path, target: Path) -> None:
    kernel.mount(image, target)
    with kernel.using(target):
        with pytest.raises(Busy, match="in use"):
            kernel.mounts.unmount(target)
        assert kernel.mounted(target)
    kernel.mounts.unmount(target)
    assert kernel.mounted(target) is None


def test_a_symlink_to_a_mount_is_not_unmounted(
    kernel: Kernel, image: Path, target: Path, tmp_path: Path
) -> None:
    kernel.mount(image, target)
    link = tmp_path / "link"
    link.symlink_to(target)
    kernel.mounts.unmount(link)
    assert kernel.mounted(target)


def test_a_mount_point_cannot_be_removed(kernel: Kernel, image: Path, target: Path) -> None:
    kernel.mount(image, target)
    with pytest.raises(OSError):
        target.rmdir()
    kernel.mounts.unmount(target)
    target.rmdir()


def test_what_is_no_image_is_refused_and_holds_no_device(
    kernel: Kernel, target: Path, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(bytes(64 * 1024))
    with pytest.raises(UnsupportedByNode), kernel.loops.attach(garbage) as device:
        kernel.mounts.mount_image(device, target)
    assert kernel.mounted(target) is None
    assert kernel.loops.wait_until_free(device, _SECONDS)


def test_a_missing_folder_is_told_and_nothing_is_left(
    kernel: Kernel, image: Path, target: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataCacheError), kernel.loops.attach(image) as device:
        kernel.mounts.mount_image(device, tmp_path / "missing")
    assert kernel.loops.wait_until_free(device, _SECONDS)
    for source, path in ((tmp_path / "missing", target), (target, tmp_path / "missing")):
        with pytest.raises(DataCacheError):
            kernel.mounts.bind_mount(source, path)
    with pytest.raises(DataCacheError):
        kernel.mounts.mount_marker("label", tmp_path / "missing")
    assert kernel.mounted(target) is None


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "tab\there",
        "line\nend",
        "back\\slash",
        "ha#sh",
        "größe",
        "\u2028\x85\x0b",
        "o - dash",
        "\\040",
    ],
)
def test_odd_names_come_out_of_the_table_as_they_went_in(
    kernel: Kernel, image: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    kernel.mount(image, path)
    assert kernel.mounted(path)
    assert kernel.mounted(tmp_path / "other") is None
    kernel.mounts.unmount(path)
    assert kernel.mounted(path) is None


def test_an_image_is_read_ahead_as_far_as_the_disk_of_its_store_but_at_least_2_mib(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    disk = tmp_path / f"{os.major(number)}:{os.minor(number)}"
    assert default_read_ahead(tmp_path, tmp_path) == 2 * 2**20
    disk.mkdir()
    (disk / "read_ahead_kb").write_text("128\n")
    assert default_read_ahead(tmp_path, tmp_path) == 2 * 2**20
    (disk / "read_ahead_kb").write_text("8192\n")
    assert default_read_ahead(tmp_path, tmp_path) == 8 * 2**20


@pytest.mark.kernel
def test_a_device_is_read_ahead_as_far_as_was_asked_at_first_and_later(image: Path) -> None:
    loops = KernelLoopDevices(1 << 20)
    with loops.attach(image, 128 * 1024) as device:
        setting = Path(f"/sys/block/{Path(device).name}/queue/read_ahead_kb")
        assert setting.read_text() == "128\n"
        for asked, kib in ((512 * 1024, 512), (None, 1024)):
            loops.set_read_ahead(device, asked)
            assert setting.read_text() == f"{kib}\n"
    loops.set_read_ahead("/dev/absent", None)
