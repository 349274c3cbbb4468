"""A plugin killed at any point, and what its next start makes of what it left.

Each scenario runs in a forked process that ends itself at its n-th change of the file system or the kernel,
for every n.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.errors import DataCacheError
from csi.images.layout.layout import has_root_directory
from csi.linux.mounts import find_mount
from tests.csi.images.origin import in_child
from tests.csi.images.stores import as_format_1
from tests.node_plugin.node import INLINE, Node

_KILLED = 9
_CHANGES = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"))
Work = Callable[[Node], None]


def staged(node: Node) -> None:
    node.stage()


def published(node: Node) -> None:
    node.stage()
    node.publish()


def inline(node: Node) -> None:
    node.inline()


def nothing(node: Node) -> None:
    pass


LIMITS = {"readIops": "500", "burstIops": "3000", "burstCredit": "6000", "csi.storage.k8s.io/pod.uid": "1111"}


def limited(node: Node) -> None:
    (node.cgroups.root / "kubepods/pod1111").mkdir(parents=True, exist_ok=True)
    node.inline(context={**INLINE, **LIMITS})


def take_away(node: Node) -> None:
    """What kubelet does with volumes it does not want any more, whatever it knows of them."""
    node.unpublish()
    node.unpublish("csi-1", "pod1")
    node.unstage()


SCENARIOS: dict[str, tuple[Work, Work]] = {
    "the first stage": (nothing, staged),
    "a stage of a cached image": (lambda node: (staged(node), node.unstage())[0], staged),
    "a publish": (staged, published),
    "an inline publish": (nothing, inline),
    "an unpublish": (published, lambda node: node.unpublish()),
    "the last unpublish of an inline volume": (inline, lambda node: node.unpublish("csi-1")),
    "an inline publish with limits": (nothing, limited),
    "the unpublish of a volume with limits": (limited, lambda node: node.unpublish("csi-1")),
    "an unstage": (staged, lambda node: node.unstage()),
    "an unstage before the unpublish": (published, lambda node: node.unstage()),
}


def killed_at(folder: Path, before: Work, work: Work, number: int) -> bool:
    """Whether `work` came to its `number`-th change, at which it was killed."""

    def child() -> None:
        node = Node(folder)
        before(node)
        left = number

        def step(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(_KILLED)

        node.kernel.step = step
        sys.addaudithook(lambda event, _: step() if event in _CHANGES and not node.kernel.inside else None)
        work(node)

    status = in_child(child)
    assert status in (0, _KILLED), f"the plugin failed by itself: {status}"
    return status == _KILLED


def assert_sound(node: Node) -> None:
    """What must be true after any start: no mount without an owner, no owner without a mount, no loop and
    no image mount for nobody."""
    known = sorted(
        Path(path).relative_to(node.folder / "kubelet")
        for volume in node.records.load_all_and_delete_unreadable()
        for path in volume.paths
    )
    assert [str(path) for path in known] == node.shown
    assert bool(node.image_mounts) == bool(node.shown)
    assert len(node.kernel.loops) == len(node.image_mounts) <= 1
    assert list((node.folder / "store/tmp").iterdir()) == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_a_kill_leaves_the_next_start_is_sound_and_goes_on(tmp_path: Path, scenario: str) -> None:
    before, work = SCENARIOS[scenario]
    number, kills = 0, 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        if not killed_at(folder, before, work, number):
            break
        kills += 1
        node = Node(folder)
        node.recovery.recover()
        assert_sound(node)
        try:
            work(node)
        except DataCacheError as error:
            assert "is not staged" in str(error), error
        assert_sound(node)
        take_away(node)
        assert node.left == [], f"after a kill at change {number}"
        assert node.limits_left == [], f"after a kill at change {number}"
        assert not node.path("pod1").exists()
        assert not [
            image
            for image in node.store.list_images()
            if node.store.find_sealed(image.digest) and image.paths.journal.exists()
        ]
        node.close()
    print(f"{scenario}: killed at each of {kills} changes")
    assert kills >= 3


def test_mounts_survive_a_restart_and_are_found(tmp_path: Path) -> None:
    node = Node(tmp_path)
    published(node)
    node.inline(path="pod2")
    table = node.mounts.list_mounts()
    node.close()
    again = Node(tmp_path)
    again.recovery.recover()
    assert again.mounts.list_mounts() == table
    again.publish()
    again.stage()
    again.inline(path="pod2")
    assert again.mounts.list_mounts() == table
    assert again.source.operations == []
    take_away(again)
    again.unpublish("csi-1", "pod2")
    assert again.left == []
    again.close()


def test_what_an_earlier_version_staged_is_marked_so_that_kubelet_unstages_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    published(node)
    node.staged_as_before()
    node.close()
    for _ in range(2):
        again = Node(tmp_path)
        again.recovery.recover()
        table = again.mounts.list_mounts()
        assert again.shown == ["pod1", "staging", "staging"]
        assert find_mount(table, again.path("staging")).source == f"datacache:{again.image_path}"  # type: ignore[union-attr]
        again.close()
    again = Node(tmp_path)
    again.publish(path="pod2")
    again.unpublish(path="pod2")
    take_away(again)
    assert again.left == []
    again.close()


def test_a_kernel_that_does_not_mark_stops_no_start(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.stage()
    node.staged_as_before()
    node.close()

    def refuse(step: str) -> None:
        if step == "before marker":
            raise DataCacheError("the kernel says no")

    again = Node(tmp_path)
    again.kernel.step = refuse
    again.recovery.recover()
    again.publish()
    take_away(again)
    assert again.left == []
    again.close()


def test_after_a_reboot_no_volume_is_remembered_and_the_images_stay(tmp_path: Path) -> None:
    node = Node(tmp_path)
    published(node)
    digest = node.source.digest
    node.close()
    for path in (tmp_path / "kernel.json", *tmp_path.rglob(".mounted-on")):
        path.unlink()
    again = Node(tmp_path)
    again.recovery.recover()
    assert again.left == []
    assert again.images.list_in_use() == set()
    assert not again.path("pod1").exists()
    assert again.store.find_sealed(digest)
    again.stage()
    assert again.source.operations.count("fill-image") == 0
    again.close()


def test_a_fill_that_needs_no_secret_goes_on_by_itself(tmp_path: Path) -> None:
    def child() -> None:
        node = Node(tmp_path)
        node.source.files = {"big.bin": 12 * 2**20}

        def killed_by_the_journal(event: str, arguments: tuple) -> None:
            if event == "os.rename" and "progress" in str(arguments):
                os._exit(_KILLED)

        sys.addaudithook(killed_by_the_journal)
        node.stage()

    status = in_child(child)
    node = Node(tmp_path)
    (image,) = node.store.list_images()
    assert status == _KILLED
    assert node.store.find_partial(image.digest)
    node.recovery.recover()
    while node.fills.get_progress():
        pass
    assert node.store.find_sealed(image.digest)
    assert node.source.operations == ["fill-image"]
    node.close()


def test_a_fill_that_needs_a_secret_goes_on_with_the_next_call(tmp_path: Path) -> None:
    def child() -> None:
        node = Node(tmp_path)
        node.source.files = {"big.bin": 12 * 2**20}
        sys.addaudithook(
            lambda event, arguments: (
                os._exit(_KILLED) if event == "os.rename" and "progress" in str(arguments) else None
            )
        )
        node.stage(secrets={"token": "right"})

    assert in_child(child) == _KILLED
    node = Node(tmp_path)
    node.source.files, node.source.readers = {"big.bin": 12 * 2**20}, {"right"}
    node.recovery.recover()
    while node.fills.get_progress():
        pass
    assert node.store.find_partial(node.source.digest)
    assert node.left == []
    node.stage(secrets={"token": "right"})
    assert node.shown == ["staging"]
    node.close()


def test_what_was_mounted_over_another_image_file_is_not_taken_for_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.stage()
    digest = node.source.digest
    image = node.store.get_paths(digest).image
    copy = image.with_name("copy")
    copy.write_bytes(image.read_bytes())
    copy.rename(image)
    node.stage("other", "staging2")
    table = node.mounts.list_mounts()
    assert table[-1].device != table[0].device
    node.unstage()
    node.unstage("other", "staging2")
    assert node.left == []
    node.close()


def test_a_start_does_not_use_an_image_whose_root_is_not_found(tmp_path: Path) -> None:
    """Version 0.1.0 sealed such images (layout format 1); they are filled anew."""
    node = Node(tmp_path)
    node.source.files = {f"model-{n:05}-of-00150.st": 1 for n in range(100)}
    node.stage()
    node.unstage()
    [image] = node.store.list_images()
    as_format_1(image.paths.image)
    node.close()
    again = Node(tmp_path)
    again.source.files = node.source.files
    again.recovery.recover()
    assert again.store.list_images() == []
    again.stage()
    assert "fill-image" in again.source.operations
    assert has_root_directory(image.paths.image)
    again.close()
