"""The life of a volume on a node: staged, published, looked at, taken away.

Alone, together and while others wait.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import (
    AlreadyExists,
    Busy,
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    NoSpace,
    PermissionDenied,
    SourceChanged,
    UnsupportedByNode,
    VolumeNotFound,
)
from csi.linux.mounts import find_mount
from csi.parameters.access_modes import AccessMode
from csi.performance.capacity import GIB
from tests.csi.worker.in_process import COMMITS
from tests.node_plugin.node import HUB, MIB, Node

DOWNGRADE = {**HUB, "writerAccessModes": "downgrade"}
READERS = (AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY)
WRITERS = tuple(mode for mode in AccessMode if mode not in READERS and mode is not AccessMode.UNKNOWN)
LIMITED = {**HUB, "readBandwidth": "4Mi"}
PINNED = {**HUB, "manifestDigest": "c" * 64}


def test_staged_published_to_two_pods_and_taken_away_nothing_is_left_but_the_image(node: Node) -> None:
    node.stage()
    node.publish(path="pod1")
    node.publish(path="pod2")
    assert node.shown == ["pod1", "pod2", "staging"]
    assert node.image_mounts == [node.source.digest]
    assert len(node.kernel.loops) == 1
    node.unpublish(path="pod1")
    node.unpublish(path="pod2")
    node.unstage()
    assert node.left == []
    assert node.path("staging").is_dir()
    assert not node.path("pod1").exists()
    assert node.store.find_sealed(node.source.digest)


def test_a_staged_volume_keeps_its_image_mounted_without_showing_it(node: Node) -> None:
    node.stage()
    marker, image = (
        find_mount(node.mounts.list_mounts(), path) for path in (node.path("staging"), node.image_path)
    )
    assert marker
    assert image
    assert marker.device != image.device
    assert marker.source == f"datacache:{image.target}"
    node.publish()
    node.unpublish()
    assert node.image_mounts == [node.source.digest]
    assert node.images.find_device(node.image_path) == image.device
    assert node.images.list_in_use() == {node.source.digest}


def test_an_image_mount_that_was_taken_away_comes_back_with_the_next_publish(node: Node) -> None:
    node.stage(context=LIMITED)
    node.mounts.unmount(node.image_path)
    assert node.image_mounts == []
    assert node.images.list_in_use() == {node.source.digest}
    node.publish(context=LIMITED)
    assert node.images.find_device(node.path("pod1")) == node.images.find_device(node.image_path) is not None
    (loop,) = node.kernel.read().loops.values()
    assert loop.read_ahead == 128 * 1024
    node.unpublish()
    node.unstage()
    assert node.left == []


def test_an_image_that_was_removed_by_hand_is_shown_while_it_is_mounted(node: Node) -> None:
    node.stage()
    node.store.get_paths(node.source.digest).image.unlink()
    node.publish()
    node.unpublish()
    node.mounts.unmount(node.image_path)
    with pytest.raises(FailedPrecondition, match="removed from this node's store; delete the volume's pods"):
        node.publish()
    assert node.shown == ["staging"]
    node.unstage()
    assert node.left == []


@pytest.mark.parametrize("image_mounted", [True, False])
def test_a_volume_that_an_earlier_version_staged_is_published_and_unstaged(
    node: Node, image_mounted: bool
) -> None:
    node.stage()
    node.staged_as_before()
    if not image_mounted:
        node.mounts.unmount(node.image_path)
    node.stage()
    node.publish()
    assert not node.volumes.get_stats("vol", node.path("staging")).is_abnormal
    assert node.images.find_device(node.path("pod1")) == node.images.find_device(node.image_path) is not None
    node.unpublish()
    assert node.image_mounts == [node.source.digest] or not image_mounted
    node.unstage()
    assert node.left == []


def test_an_image_that_is_there_is_not_filled_again(node: Node) -> None:
    for _ in range(2):
        node.stage()
        node.unstage()
    assert node.source.operations.count("fill-image") == 1


def test_each_call_ten_times_is_each_call_once(node: Node) -> None:
    for call in (node.stage, node.publish):
        for _ in range(10):
            call()
    assert node.shown == ["pod1", "staging"]
    for call in (node.unpublish, node.unstage):
        for _ in range(10):
            call()
    assert node.left == []


def test_two_volumes_of_one_content_share_image_loop_and_super_block(node: Node) -> None:
    for volume in ("one", "two"):
        node.stage(volume, f"staging-{volume}")
    node.inline("three", "pod3")
    assert len(node.image_mounts) == 1
    assert len(node.kernel.loops) == 1
    assert node.source.operations.count("fill-image") == 1
    node.unstage("one", "staging-one")
    node.unpublish("three", "pod3")
    assert len(node.image_mounts) == 1
    node.unstage("two", "staging-two")
    assert node.left == []


# csi-conformance.md, "Second NodePublish of one volume".
@pytest.mark.parametrize("mode", [mode for mode in AccessMode if mode is not AccessMode.UNKNOWN])
def test_a_second_publish_of_one_volume(node: Node, mode: AccessMode) -> None:
    arguments = {"mode": mode, "context": DOWNGRADE}
    node.stage(**arguments)
    node.publish(**arguments)
    node.publish(**arguments)
    for changed in (
        {"readonly": False},
        {"mount_flags": ("ro",)},
        {"context": {**DOWNGRADE, "revision": "b" * 40}},
    ):
        with pytest.raises(AlreadyExists, match="with other arguments"):
            node.publish(**{**arguments, **changed})
    if mode is AccessMode.SINGLE_NODE_SINGLE_WRITER:
        with pytest.raises(FailedPrecondition, match="ReadWriteOncePod and is published at .*pod1 already"):
            node.publish(path="pod2", **arguments)
        node.unpublish()
        node.publish(path="pod2", **arguments)
        assert node.shown == ["pod2", "staging"]
    else:
        node.publish(path="pod2", **arguments)
        assert node.shown == ["pod1", "pod2", "staging"]


def test_another_mode_at_the_same_path_is_another_argument(node: Node) -> None:
    node.stage(mode=READERS[0])
    with pytest.raises(AlreadyExists):
        node.stage(mode=READERS[1])
    node.publish(mode=READERS[0])
    with pytest.raises(AlreadyExists):
        node.publish(mode=READERS[1])


def test_what_kubernetes_adds_and_secrets_are_no_arguments(node: Node) -> None:
    node.stage(context={**HUB, "storage.kubernetes.io/csiProvisionerIdentity": "a"}, secrets={"token": "a"})
    node.stage(context={**HUB, "storage.kubernetes.io/csiProvisionerIdentity": "b"}, secrets={"token": "b"})
    node.publish(context={**HUB, "csi.storage.k8s.io/pod.name": "a", "csi.storage.k8s.io/ephemeral": "false"})
    node.publish(
        context={**HUB, "csi.storage.k8s.io/pod.name": "b", "csi.storage.k8s.io/serviceAccount.tokens": "x"}
    )
    assert node.shown == ["pod1", "staging"]


@pytest.mark.parametrize("mode", WRITERS)
def test_a_writer_mode_is_refused_on_a_persistent_volume_and_downgraded_inline(
    node: Node, mode: AccessMode
) -> None:
    with pytest.raises(InvalidParameter, match="writerAccessModes: downgrade"):
        node.stage(mode=mode)
    node.inline(mode=mode)
    node.stage()
    with pytest.raises(InvalidParameter, match="writerAccessModes: downgrade"):
        node.publish(path="pod2", mode=mode)
    assert node.shown == ["pod1", "staging"]


def test_a_missing_mode_is_refused(node: Node) -> None:
    with pytest.raises(InvalidParameter, match="access mode is missing"):
        node.stage(mode=AccessMode.UNKNOWN)


def test_a_volume_that_is_not_staged_there_cannot_be_published(node: Node) -> None:
    with pytest.raises(FailedPrecondition, match="is not staged at"):
        node.publish()
    node.stage()
    with pytest.raises(FailedPrecondition, match="is not staged at"):
        node.publish(staging="elsewhere")
    with pytest.raises(FailedPrecondition, match="is not staged at"):
        node.publish("other")
    node.mounts.unmount(node.path("staging"))
    with pytest.raises(FailedPrecondition, match="is not staged at"):
        node.publish()


def test_only_inline_volumes_are_published_without_a_staging_path(node: Node) -> None:
    node.stage()
    with pytest.raises(InvalidParameter, match="staging_target_path is missing"):
        node.volumes.publish(node.request("vol", "pod1"), None)  # type: ignore[arg-type]


def test_a_publish_never_asks_the_source_and_never_waits(node: Node) -> None:
    node.stage()
    asked = len(node.source.asked)
    node.source.go.clear()
    node.publish(seconds=0)
    assert len(node.source.asked) == asked


def test_a_source_that_is_not_what_the_volume_was_created_from_is_refused_and_leaves_nothing(
    node: Node,
) -> None:
    with pytest.raises(SourceChanged, match="has changed since this volume was created"):
        node.stage(context=PINNED)
    assert node.left == []
    assert node.store.list_images() == []
    assert not node.path("staging").exists()
    node.stage(context={**HUB, "manifestDigest": node.source.digest})
    assert node.shown == ["staging"]


def test_a_cached_image_is_not_handed_to_a_token_that_may_not_read(node: Node) -> None:
    node.source.readers = {"right"}
    node.stage(secrets={"token": "right"})
    for secrets in ({}, {"token": "wrong"}):
        with pytest.raises(PermissionDenied):
            node.stage("other", "staging2", secrets=secrets)
        with pytest.raises(PermissionDenied):
            node.inline(secrets=secrets)
    assert node.shown == ["staging"]
    node.inline(secrets={"token": "right"})


def test_content_that_cannot_fit_is_refused_with_both_numbers_and_leaves_nothing(
    tmp_path: Path, node: Node
) -> None:
    node.close()
    small = Node(tmp_path, budget=MIB)
    small.source.files = {"big.bin": 5 * MIB}
    with pytest.raises(NoSpace, match="the image needs 5.* room for 1.0 MiB"):
        small.stage()
    assert small.left == []
    assert small.source.operations.count("fill-image") == 0
    small.close()


def test_images_without_a_mount_go_for_a_new_one_and_mounted_ones_stay(tmp_path: Path, node: Node) -> None:
    node.close()
    small = Node(tmp_path, budget=5 * MIB)
    digests = []
    for number in range(3):
        small.source.files = {f"{number}.bin": 2 * MIB}
        digests.append(small.source.digest)
        # The proof of the last content would answer for this one.
        small.stage(f"v{number}", f"s{number}", secrets={"token": str(number)})
        if number == 1:
            small.unstage("v1", "s1")
    assert [bool(small.store.find_sealed(digest)) for digest in digests] == [True, False, True]
    small.close()


def test_a_node_without_erofs_is_told_before_anything_is_asked(node: Node) -> None:
    node.not_ready = UnsupportedByNode("no EROFS here")
    for call in (node.stage, node.inline):
        with pytest.raises(UnsupportedByNode, match="no EROFS"):
            call()
    assert node.source.asked == []
    assert node.left == []


def test_a_mount_in_use_is_busy_and_stays_whole(node: Node) -> None:
    node.stage()
    node.publish()
    with node.kernel.using(node.path("pod1")), pytest.raises(Busy, match="in use"):
        node.unpublish()
    assert node.shown == ["pod1", "staging"]
    assert not node.volumes.get_stats("vol", node.path("pod1")).is_abnormal
    node.unpublish()


def test_unstaging_before_unpublishing_keeps_the_pods_mount(node: Node) -> None:
    node.stage()
    node.publish()
    node.unstage()
    assert node.shown == ["pod1"]
    assert len(node.image_mounts) == 1
    node.unpublish()
    assert node.left == []


def test_a_pod_that_shows_what_its_volume_held_before_leaves_nothing(node: Node) -> None:
    """Its staging mount was lost, and staging anew found that the branch had moved."""
    moving = {**HUB, "revision": "main"}
    node.stage(context=moving)
    node.publish(context=moving)
    node.mounts.unmount(node.path("staging"))
    node.source.commit = COMMITS[1]
    node.stage(context=moving, secrets={"token": "that has proven nothing yet"})
    assert len(node.image_mounts) == 2
    node.unpublish()
    node.unstage()
    assert node.left == []


def test_what_was_never_there_is_taken_away_without_an_error(node: Node) -> None:
    node.unpublish("never", "nowhere/deep")
    node.unstage("never/../was", "nowhere")
    assert node.left == []


def test_a_target_that_holds_something_else_is_left_alone(node: Node) -> None:
    target = node.path("pod1")
    target.mkdir(parents=True)
    (target / "theirs").touch()
    with pytest.raises(FailedPrecondition, match="remove its content, which is not this driver's"):
        node.unpublish()
    assert (target / "theirs").exists()
    node.stage()
    target.rename(node.path("moved"))
    target.touch()
    with pytest.raises(FailedPrecondition, match="cannot be created as a folder"):
        node.publish()
    assert node.shown == ["staging"]
    assert [volume.paths for volume in node.records.load_all_and_delete_unreadable()] == [
        [str(node.path("staging"))]
    ]


def test_a_path_must_be_absolute_and_symlinks_above_it_are_followed(node: Node) -> None:
    for bad in (Path("staging"), Path("/a/../b"), Path("/a/b\0c")):
        with pytest.raises(InvalidParameter, match="not an absolute path"):
            replace(node.request("vol", "x"), path=bad)
    node.path("real").mkdir(parents=True)
    node.path("link").symlink_to(node.path("real"))
    for _ in range(2):
        node.stage(path="link/globalmount")
        node.publish(path="link/pod", staging="link/globalmount")
    assert node.shown == ["real/globalmount", "real/pod"]
    assert node.volumes.get_stats("vol", node.path("link/pod")).content_bytes == 10_021
    node.unpublish(path="link/pod")
    node.unstage(path="link/globalmount")
    assert node.left == []


def test_stats_are_content_against_capacity_at_every_path_that_shows_the_volume(node: Node) -> None:
    node.stage(context={**HUB, "capacityBytes": str(7 * GIB)})
    node.inline("csi-1", "pod2")
    for volume, path, capacity in (("vol", "staging", 7 * GIB), ("csi-1", "pod2", GIB)):
        stats = node.volumes.get_stats(volume, node.path(path))
        assert (stats.capacity_bytes, stats.content_bytes, stats.is_abnormal) == (capacity, 10_021, False)


@pytest.mark.parametrize(
    ("volume", "path"), [("vol", "some/path"), ("other", "staging"), ("", "staging"), ("../x", "staging")]
)
def test_stats_of_what_is_not_there_are_not_found(node: Node, volume: str, path: str) -> None:
    node.stage()
    with pytest.raises(VolumeNotFound):
        node.volumes.get_stats(volume, node.path(path))
    with pytest.raises(VolumeNotFound):
        node.volumes.get_stats(volume, Path(path))


def test_a_volume_whose_mount_is_gone_is_abnormal_with_the_way_out(node: Node) -> None:
    node.stage()
    node.publish()
    node.mounts.unmount(node.path("pod1"))
    stats = node.volumes.get_stats("vol", node.path("pod1"))
    assert stats.is_abnormal
    assert "delete the pod" in stats.message
    node.publish()
    assert not node.volumes.get_stats("vol", node.path("pod1")).is_abnormal


def test_a_second_call_in_the_middle_of_the_first_is_told_so(node: Node) -> None:
    node.stage()
    seen: list[BaseException] = []

    def interfere(step: str) -> None:
        if step == "before bind":
            node.kernel.step = lambda _: None
            for call in (node.publish, node.unpublish, node.unstage):
                with pytest.raises(Busy, match="another call is working on vol") as error:
                    call()
                seen.append(error.value)

    node.kernel.step = interfere
    node.publish(path="pod2")
    assert len(seen) == 3
    assert node.shown == ["pod2", "staging"]


@pytest.mark.parametrize(
    "steps",
    [("before mount",), ("after mount",), ("before bind", "before marker"), ("after bind", "after marker")],
)
def test_a_kernel_that_refuses_leaves_nothing_half_made(node: Node, steps: tuple[str, ...]) -> None:
    def refuse(step: str) -> None:
        if step in steps:
            raise DataCacheError("the kernel says no")

    node.kernel.step = refuse
    for call in (node.stage, node.inline):
        with pytest.raises(DataCacheError, match="says no"):
            call()
    node.kernel.step = lambda _: None
    assert node.left == []
    assert node.images.list_in_use() == set()
    node.stage()
    assert node.shown == ["staging"]
