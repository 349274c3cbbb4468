"""Volumes with limits on a node: from the keys in a context or the registry to the rule in the pod's
cgroup, and what people are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import DataCacheError, InvalidParameter, UnsupportedByNode
from csi.parameters.performance_keys import Performance, compute_limits
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.performance.capacity import GIB
from csi.performance.limits import UNLIMITED, Rate
from csi.registry.volumes.record import VolumeRecord
from tests.node_plugin.node import HUB, INLINE, Node

UID, OTHER_UID = "1111-2222", "3333-4444"
SLOW, SLOW_RATE = {**HUB, "readIops": "500"}, Rate(500, 8_192_000)
INLINE_SLOW = {**INLINE, "readIops": "500"}


def target(uid: str = UID, volume: str = "model") -> str:
    """A path as kubelet makes it (below the node's kubelet folder)."""
    return f"pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount"


def pod(node: Node, uid: str = UID) -> Path:
    """The pod's cgroup, made."""
    path = node.cgroups.root / f"kubepods/burstable/pod{uid}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def device(node: Node, path: str) -> str | None:
    return node.images.find_device(node.images.find_content(node.path(path)))


def rate(node: Node, path: str, uid: str = UID) -> Rate:
    """The limit on the pod's cgroup for what is mounted at `path`."""
    return node.cgroups.read_limit(pod(node, uid), device(node, path) or "")


def message(node: Node, path: str, volume: str = "vol") -> str:
    return node.volumes.get_stats(volume, node.path(path)).message


def register(node: Node, volume: str, performance: Mapping[str, str]) -> None:
    """What the controller knows of a volume."""
    spec = parse_volume_parameters(HUB).spec
    record = VolumeRecord(
        volume, volume, spec, spec, "d" * 64, 20 * GIB, 1, performance=Performance().with_changes(performance)
    )
    node.registry.put(record)


def test_a_published_volume_s_limit_is_on_its_pod(node: Node) -> None:
    pod(node)
    node.stage(context=SLOW)
    node.publish(path=target(), context=SLOW)
    assert rate(node, target()) == SLOW_RATE
    assert "limits: 500 IOPS and 7.812 MiB/s, for each container of the pod by itself" in message(
        node, target()
    )
    assert "in each pod: 500 IOPS" in message(node, "staging")
    used = device(node, target()) or ""
    node.unpublish(path=target())
    assert node.cgroups.read_limit(pod(node), used) == UNLIMITED


def test_a_volume_without_performance_keys_has_no_limit(node: Node) -> None:
    pod(node)
    node.stage()
    node.publish(path=target())
    assert rate(node, target()) == UNLIMITED
    assert "no I/O limits" in message(node, target())
    assert list((node.folder / "store/throttles").iterdir()) == []


def test_each_limit_class_has_a_device_of_its_own(node: Node) -> None:
    for number, context in enumerate((INLINE, INLINE_SLOW, INLINE_SLOW, {**INLINE, "readIops": "5000"})):
        node.inline(f"csi-{number}", target(volume=str(number)), context=context)
    for volume, context in (("free", HUB), ("slow", SLOW), ("slow-too", SLOW)):
        node.stage(volume, volume, context=context)
    devices = [
        device(node, path)
        for path in (*(target(volume=str(number)) for number in range(4)), "free", "slow", "slow-too")
    ]
    assert devices[1] == devices[2]
    assert devices[0] == devices[4]
    assert len(set(devices)) == 5


def test_inline_volumes_of_one_class_in_one_pod_have_the_sum(node: Node) -> None:
    pod(node)
    for number in (1, 2):
        node.inline(f"csi-{number}", target(volume=str(number)), context=INLINE_SLOW)
    assert rate(node, target(volume="1")) == Rate(1000, 16_384_000)
    assert "1000 IOPS and 15.625 MiB/s together" in message(node, target(volume="1"), "csi-1")
    node.unpublish("csi-1", target(volume="1"))
    assert rate(node, target(volume="2")) == SLOW_RATE


def test_the_pod_may_be_named_by_the_context_alone(node: Node) -> None:
    cgroup = pod(node)
    node.inline(path="pod1", context={**INLINE_SLOW, "csi.storage.k8s.io/pod.uid": UID})
    assert node.cgroups.read_limit(cgroup, device(node, "pod1") or "") == SLOW_RATE


@pytest.mark.parametrize("uid", ["../../other", "a/b", "", "."])
def test_a_uid_that_is_none_touches_no_cgroup(node: Node, uid: str) -> None:
    (node.cgroups.root / "other").mkdir()
    node.inline(path="pod1", context={**INLINE_SLOW, "csi.storage.k8s.io/pod.uid": uid})
    assert node.cgroups.writes == 0
    assert "not throttled: no pod is known" in message(node, "pod1", "csi-1")


def test_a_pod_author_cannot_name_another_pod_s_uid_over_the_path(node: Node) -> None:
    mine, other = pod(node), pod(node, OTHER_UID)
    node.inline(path=target(), context={**INLINE_SLOW, "csi.storage.k8s.io/pod.uid": OTHER_UID})
    used = device(node, target()) or ""
    assert node.cgroups.read_limit(mine, used) == SLOW_RATE
    assert node.cgroups.read_limit(other, used) == UNLIMITED


def test_out_of_range_is_lowered_for_an_inline_volume_and_refused_for_others(node: Node) -> None:
    keys = {"provisionedIops": "35000", "burstingEnabled": "true", "size": "20Gi"}
    pod(node)
    node.inline(path=target(), context={**INLINE, **keys})
    assert rate(node, target()) == Rate(20_000, 414_842_880)
    assert "provisionedIops 35000 lowered to 17000, the most for 20 GiB" in message(node, target(), "csi-1")
    with pytest.raises(InvalidParameter, match="1 to 17000 for 20 GiB"):
        node.stage(context={**HUB, **keys})
    assert node.shown == [target()]


def test_what_the_registry_has_counts_and_not_the_context(node: Node) -> None:
    pod(node)
    register(node, "vol", {"readIops": "700"})
    node.stage(context=SLOW)
    node.publish(path=target(), context=SLOW)
    assert rate(node, target()).iops == 700


def test_changed_performance_is_in_force_without_a_new_mount(node: Node) -> None:
    pod(node)
    register(node, "vol", {"readIops": "700"})
    node.stage(context=SLOW)
    node.publish(path=target(), context=SLOW)
    table = node.mounts.list_mounts()
    for performance, iops in (
        ({"readIops": "2000"}, 2000),
        ({"performanceLevel": "PL1"}, 2800),
        ({}, None),
        ({"readIops": "10"}, 10),
    ):
        register(node, "vol", performance)
        node.volumes.renew_limits("vol")
        assert rate(node, target()).iops == iops
    assert node.mounts.list_mounts() == table
    (loop,) = node.kernel.read().loops.values()
    assert loop.read_ahead == 128 * 1024
    node.unpublish(path=target())
    node.unstage()
    assert node.left == []


def test_a_volume_that_gets_limits_later_says_what_it_shares(node: Node) -> None:
    pod(node)
    register(node, "vol", {})
    register(node, "free", {})
    for volume in ("vol", "free"):
        node.stage(volume, volume)
        node.publish(volume, target(volume=volume), staging=volume)
    register(node, "vol", {"readIops": "700"})
    node.volumes.renew_limits("vol")
    assert "not throttled: the pod has another volume without limits on the same device" in message(
        node, target(volume="vol")
    )
    node.unpublish("free", target(volume="free"))
    assert rate(node, target(volume="vol")).iops == 700


@pytest.mark.parametrize("lost", ["damaged", "deleted"])
def test_a_volume_that_the_registry_lost_keeps_the_limits_it_had(tmp_path: Path, lost: str) -> None:
    node = Node(tmp_path)
    pod(node)
    register(node, "vol", {"readIops": "700"})
    node.stage(context=HUB)
    node.publish(path=target(), context=HUB)
    if lost == "damaged":
        (node.folder / "registry/volumes/vol.json").write_text("{")
    else:
        node.registry.delete("vol")
    node.volumes.renew_limits("vol")
    assert rate(node, target()).iops == 700
    node.close()
    again = Node(tmp_path)
    again.recovery.recover()
    assert rate(again, target()).iops == 700
    assert again.cgroups.writes == 0
    pod(again, OTHER_UID)
    again.publish(path=target(OTHER_UID), context=HUB)
    assert rate(again, target(OTHER_UID), OTHER_UID).iops == 700
    again.close()


def test_a_registry_that_cannot_be_read_from_the_start_leaves_the_context_s_limits(node: Node) -> None:
    pod(node)
    register(node, "vol", {"readIops": "700"})
    (node.folder / "registry/volumes/vol.json").write_text("{")
    node.stage(context=SLOW)
    node.publish(path=target(), context=SLOW)
    assert rate(node, target()) == SLOW_RATE


def test_performance_that_a_size_does_not_have_any_more_leaves_what_is_in_force(tmp_path: Path) -> None:
    node = Node(tmp_path)
    pod(node)
    register(node, "vol", {"readIops": "700"})
    node.stage(context=SLOW)
    node.publish(path=target(), context=SLOW)
    register(node, "vol", {"performanceLevel": "PL3"})
    with pytest.raises(InvalidParameter, match="PL3 needs 1261 GiB"):
        node.volumes.renew_limits("vol")
    assert rate(node, target()).iops == 700
    node.close()
    again = Node(tmp_path)
    again.recovery.recover()
    assert rate(again, target()).iops == 700
    assert again.cgroups.writes == 0
    assert "no limits can be enforced: performanceLevel is PL3" in message(again, "staging")
    again.close()


def test_a_node_that_cannot_throttle_works_and_says_so(tmp_path: Path) -> None:
    node = Node(tmp_path, unthrottled=True)
    node.inline(path=target(), context=INLINE_SLOW)
    assert node.shown == [target()]
    assert "not throttled: no cgroups here; its limits are 500 IOPS" in message(node, target(), "csi-1")
    node.close()


def test_a_node_that_must_throttle_and_cannot_refuses_before_the_pod_sees_anything(tmp_path: Path) -> None:
    node = Node(tmp_path, unthrottled=True, require_throttle=True)
    with pytest.raises(UnsupportedByNode, match="cannot be enforced: no cgroups here"):
        node.inline(path=target(), context=INLINE_SLOW)
    assert node.left == []
    node.inline(path=target(), context=INLINE)
    node.close()


def test_a_mount_that_fails_leaves_no_limit(node: Node) -> None:
    cgroup = pod(node)

    def step(what: str) -> None:
        if what == "before bind":
            raise DataCacheError("no")

    node.kernel.step = step
    with pytest.raises(DataCacheError):
        node.inline(path=target(), context=INLINE_SLOW)
    assert node.throttle.list_limit_statuses() == []
    assert all(node.cgroups.read_limit(cgroup, f"7:{number}") == UNLIMITED for number in range(1000, 1004))


def test_the_next_start_holds_what_is_mounted_and_no_more(tmp_path: Path) -> None:
    node = Node(tmp_path)
    cgroup = pod(node)
    node.stage(context=SLOW)
    node.publish(path=target(), context=SLOW)
    node.inline(
        path=target(volume="inline"),
        context={**INLINE, "readIops": "500", "burstIops": "3000", "burstCredit": "6000"},
    )
    gone, kept = device(node, target(volume="inline")) or "", device(node, target()) or ""
    node.close()
    again = Node(tmp_path)
    again.mounts.unmount(again.path(target(volume="inline")))
    again.recovery.recover()
    assert again.cgroups.read_limit(cgroup, kept) == SLOW_RATE
    assert again.cgroups.read_limit(cgroup, gone) == UNLIMITED
    assert again.cgroups.writes == 1
    again.close()


def test_limits_are_no_part_of_how_a_path_is_shown(node: Node) -> None:
    node.stage(context=SLOW)
    node.publish(path=target(), context={**SLOW, "csi.storage.k8s.io/pod.uid": UID})
    node.publish(path=target(), context={**SLOW, "csi.storage.k8s.io/pod.uid": OTHER_UID})
    assert replace(node.request("vol", target()).exposure, pod=UID) == node.request("vol", target()).exposure


def test_limits_are_computed_once_for_each_call(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Performance] = []

    def count(performance: Performance, capacity_bytes: int, clamp: bool = False) -> object:
        computed.append(performance)
        return compute_limits(performance, capacity_bytes, clamp)

    monkeypatch.setattr("node_plugin.volumes.limits.compute_limits", count)
    pod(node)
    for call in (
        lambda: node.inline(context=INLINE_SLOW, path=target()),
        lambda: node.stage(context=SLOW),
        lambda: node.publish(context=SLOW, path=target(volume="staged")),
    ):
        computed.clear()
        call()
        assert len(computed) == 1
