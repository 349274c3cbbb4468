"""One loop device and one super block for each image and limit class."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from csi.errors import DataCacheError, UnsupportedByNode
from csi.manifest.manifest import build_manifest
from node_plugin.volumes.image_mounts import ImageMounts
from tests.csi.images.trees import file, image_of
from tests.csi.linux.fakes import FakeKernel, FakeLoops, FakeMounts

ONE, TWO = "1" * 64, "2" * 64


class Place:
    """Image mounts over a fake kernel, with two images beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kernel = folder, FakeKernel(folder / "kernel.json")
        self.mounts, self.loops = FakeMounts(self.kernel), FakeLoops(self.kernel)
        self.asked_ready = 0
        self.images = ImageMounts(folder / "mounts", self.mounts, self.loops, self._ready)
        self.files = {digest: folder / f"image-{digest[0]}" for digest in (ONE, TWO)}
        for digest, path in self.files.items():
            image_of(build_manifest([file(digest[0], 100)], {}), path)

    def _ready(self) -> None:
        self.asked_ready += 1

    def mount(self, digest: str = ONE, limit_class: str = "none") -> Path:
        return self.images.mount(digest, self.files[digest], limit_class)

    def show(self, source: Path, name: str) -> Path:
        target = self.folder / name
        target.mkdir()
        self.mounts.bind_mount(source, target)
        return target

    def mark(self, source: Path, name: str) -> Path:
        target = self.folder / name
        target.mkdir()
        self.images.mount_marker(source, target)
        return target


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_image_is_mounted_once_however_often_it_is_asked_for(place: Place) -> None:
    assert place.mount() == place.mount() == place.folder / "mounts" / ONE / "none"
    assert len(place.kernel.loops) == 1
    assert place.asked_ready == 1
    assert place.images.find_device(place.mount()) == "7:1000"
    assert place.images.find_device(place.folder) is None


def test_many_threads_at_once_mount_it_once(place: Place) -> None:
    threads = [threading.Thread(target=place.mount) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(place.kernel.loops) == 1


def test_each_limit_class_has_a_device_of_its_own(place: Place) -> None:
    free, limited = place.mount(), place.mount(limit_class="vol-1")
    assert len(place.kernel.loops) == 2
    assert place.images.find_device(free) != place.images.find_device(limited)
    place.images.unmount_unused(ONE)
    assert place.kernel.loops == []


def test_it_goes_with_the_last_that_shows_it_and_not_before(place: Place) -> None:
    target = place.show(place.mount(), "pod")
    place.images.unmount_unused(ONE)
    assert place.images.list_in_use() == {ONE}
    place.mounts.unmount(target)
    place.images.unmount_unused(ONE)
    place.images.unmount_unused(ONE)
    assert place.images.list_in_use() == set()
    assert place.kernel.loops == []
    assert list((place.folder / "mounts").iterdir()) == []


def test_a_marker_keeps_the_image_of_its_class_and_no_other(place: Place) -> None:
    marked = place.mark(place.mount(), "staging")
    place.mount(limit_class="vol-1")
    place.mount(TWO)
    for digest in (ONE, TWO):
        place.images.unmount_unused(digest)
    place.images.unmount_all_unused()
    assert [mount.target for mount in place.mounts.list_mounts()] == [str(place.mount()), str(marked)]
    assert place.images.find_digest_and_class(marked) == (ONE, "none")
    assert place.images.find_content(marked) == place.mount()
    place.mounts.unmount(place.mount())
    assert place.images.list_in_use() == {ONE}
    assert place.images.find_digest_and_class(marked) == (ONE, "none")
    assert place.images.find_content(marked) == marked
    place.mount()
    place.mounts.unmount(marked)
    place.images.unmount_unused(ONE)
    assert place.mounts.list_mounts() == []
    assert place.images.find_digest_and_class(marked) is None
    assert place.images.list_in_use() == set()


def test_what_only_looks_like_a_marker_of_ours_keeps_nothing(place: Place) -> None:
    """Another plugin's on this machine, or what is mounted elsewhere under our name."""
    place.mount()
    for number, label in enumerate(
        (
            f"datacache:/elsewhere/{ONE}/none",
            "datacache:",
            str(place.mount()),
            "tmpfs",
            "datacache:odd \n label",
        )
    ):
        target = place.folder / f"other{number}"
        target.mkdir()
        place.mounts.mount_marker(label, target)
        assert place.images.find_digest_and_class(target) is None
    place.images.unmount_unused(ONE)
    assert place.images.list_in_use() == set()


def test_a_marker_covers_a_bind_of_an_image_once_and_no_bare_folder(place: Place) -> None:
    image = place.mount(limit_class="vol-1")
    staged = place.show(image, "staging")
    other = place.folder / "other"
    other.mkdir()
    for _ in range(2):
        for path in (staged, other, place.folder / "missing"):
            place.images.cover_with_marker(image, path)
    assert [mount.fs_type for mount in place.mounts.list_mounts()] == ["erofs", "erofs", "tmpfs"]
    assert place.images.find_digest_and_class(staged) == (ONE, "vol-1")


def test_a_bind_of_another_image_keeps_nothing(place: Place) -> None:
    place.show(place.mount(TWO), "pod")
    place.mount(ONE)
    place.images.unmount_unused(ONE)
    assert place.images.list_in_use() == {TWO}


def test_what_is_held_is_in_use_and_is_not_released(place: Place) -> None:
    with place.images.hold_mounts(ONE):
        assert place.images.list_in_use() == {ONE}
        place.mount()
        with place.images.hold_mounts(ONE):
            pass
        place.images.unmount_unused(ONE)
        assert len(place.kernel.loops) == 1
    assert place.images.list_in_use() == {ONE}
    place.images.unmount_unused(ONE)
    assert place.images.list_in_use() == set()


def test_a_hold_that_fails_leaves_no_mount_unless_another_holds_it_too(place: Place) -> None:
    with place.images.hold_mounts(ONE):
        with pytest.raises(ValueError), place.images.hold_mounts(ONE):
            place.mount()
            raise ValueError
        assert len(place.kernel.loops) == 1
    with pytest.raises(ValueError), place.images.hold_mounts(ONE):
        raise ValueError
    assert place.kernel.loops == []
    assert place.images.list_in_use() == set()


def test_a_mount_in_use_stays_and_is_released_later(place: Place) -> None:
    path = place.mount()
    with place.kernel.using(path):
        place.images.unmount_unused(ONE)
        assert place.images.list_in_use() == {ONE}
    place.images.unmount_unused(ONE)
    assert place.images.list_in_use() == set()


def test_a_mount_over_another_file_is_replaced(place: Place) -> None:
    place.mount()
    place.files[TWO].rename(place.files[ONE])
    place.mount()
    (mount,) = place.mounts.list_mounts()
    assert place.loops.is_backed_by(mount.source, place.files[ONE])
    assert len(place.kernel.loops) == 1


def test_a_sweep_releases_what_nobody_shows_and_removes_empty_folders(place: Place) -> None:
    place.show(place.mount(ONE), "pod")
    place.mount(TWO)
    (place.folder / "mounts" / ("3" * 64) / "none").mkdir(parents=True)
    place.images.unmount_all_unused()
    assert place.images.list_in_use() == {ONE}
    assert [path.name for path in (place.folder / "mounts").iterdir()] == [ONE]


def test_a_node_that_cannot_mount_is_told_and_holds_no_device(place: Place, tmp_path: Path) -> None:
    def never() -> None:
        raise UnsupportedByNode("no EROFS")

    images = ImageMounts(tmp_path / "mounts", place.mounts, place.loops, never)
    for attempt in (images.check_node, lambda: images.mount(ONE, place.files[ONE], "none")):
        with pytest.raises(UnsupportedByNode):
            attempt()
    place.files[TWO].write_bytes(bytes(8192))
    with pytest.raises(DataCacheError):
        place.mount(TWO)
    assert place.kernel.loops == []
    assert place.mounts.list_mounts() == []


def test_only_root_looks_into_the_folder_of_image_mounts(place: Place) -> None:
    assert (place.folder / "mounts").stat().st_mode & 0o077 == 0
