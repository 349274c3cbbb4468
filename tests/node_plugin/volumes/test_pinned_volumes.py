"""One answer in a namespace: inline volumes of a moving revision on several nodes, which share pins in a
cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csi.errors import Busy, ClusterUnavailable, FailedPrecondition, PermissionDenied, SourceNotFound
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.pinning import pin_name
from csi.registry.events.recorder import ObjectReference
from csi.registry.pins.pins import CachePin, PinHolder
from tests.csi.registry.pins.fake_pins import FakePins
from tests.csi.worker.in_process import COMMITS
from tests.node_plugin.node import HUB, Node

MAIN = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main"))
NAME = pin_name(MAIN)


def context(namespace: str = "team", **keys: str) -> dict[str, str]:
    return {
        **HUB,
        "revision": "main",
        **keys,
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.namespace": namespace,
    }


class Cluster:
    """Nodes over one FakePins, each with a source of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pins, self.nodes = folder, FakePins(), dict[str, Node]()

    def node(self, name: str, commit: str = COMMITS[0], **more: Any) -> Node:
        """A start of the plugin on the node `name`, which finds main at `commit`.

        An earlier start there has ended.
        """
        if name in self.nodes:
            self.nodes.pop(name).close()
        made = Node(self.folder / name, pins=self.pins, name=name, **more)
        made.source.commit = commit
        made.recovery.recover()
        self.nodes[name] = made
        return made

    @property
    def holders(self) -> list[str]:
        return sorted(holder.name for pin in self.pins.list_all() for holder in pin.holders)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in made.nodes.values():
        node.close()


def show(node: Node, volume: str = "csi-1", path: str = "pod1", **more: Any) -> str:
    """Publish an inline volume; the commit that it shows."""
    node.inline(volume, path, **{"context": context(), **more})
    record = node.records.get(volume)
    assert record
    names = [entry.path for entry in node.store.read_manifest(record.digest).entries]
    return next(commit for commit in COMMITS if f"at-{commit[:8]}" in names)


def hide(node: Node, volume: str = "csi-1", path: str = "pod1") -> None:
    node.unpublish(volume, path)
    node.pins.sync()


def test_replicas_on_two_nodes_read_one_commit_though_the_branch_moved(cluster: Cluster) -> None:
    first, second = cluster.node("node-a"), cluster.node("node-b", COMMITS[1])
    assert show(first) == show(second) == COMMITS[0]
    assert cluster.holders == ["node-a", "node-b"]
    (pin,) = cluster.pins.list_all()
    assert (pin.namespace, pin.name, pin.requested, pin.pinned.source.revision) == (
        "team",
        NAME,
        MAIN,
        COMMITS[0],
    )  # type: ignore[union-attr]


def test_the_pod_is_told_what_its_volume_is_pinned_to(cluster: Cluster) -> None:
    show(cluster.node("node-a"))
    node, pod = cluster.node("node-b", COMMITS[1]), ObjectReference("Pod", "team", "reader", "uid-1")
    about = {"csi.storage.k8s.io/pod.name": "reader", "csi.storage.k8s.io/pod.uid": "uid-1"}
    show(node, context=context(**about))
    said = node.announcer.said(pod)["CachePinned"]
    assert f"org/name@{COMMITS[0]}" in said.message
    assert f"CachePin team/{NAME}" in said.message
    assert not said.warning
    show(node, "csi-2", "pod2", context=context(revision=COMMITS[0], **about))
    assert node.announcer.said(pod)["CachePinned"].count == 1, "a commit stands for itself"


def test_it_is_held_until_the_last_volume_is_gone_and_then_the_branch_counts(cluster: Cluster) -> None:
    first, second = cluster.node("node-a"), cluster.node("node-b", COMMITS[1])
    show(first)
    show(first, "csi-2", "pod2")
    show(second)
    hide(first)
    assert cluster.holders == ["node-a", "node-b"]
    hide(first, "csi-2", "pod2")
    assert cluster.holders == ["node-b"]
    assert show(second, "csi-3", "pod3") == COMMITS[0]
    for volume, path in (("csi-1", "pod1"), ("csi-3", "pod3")):
        hide(second, volume, path)
    assert cluster.holders == []
    second.now += 1000
    assert show(second, secrets={"token": "another"}) == COMMITS[1]


def test_a_node_that_remembers_what_the_branch_was_asks_anew_before_it_pins_again(cluster: Cluster) -> None:
    node = cluster.node("node-a")
    assert show(node) == COMMITS[0]
    hide(node)
    node.source.commit = COMMITS[1]
    assert show(node) == COMMITS[1]
    asked = len(node.source.asked)
    assert show(node, "csi-2", "pod2") == COMMITS[1], "what is pinned was proven just now"
    assert len(node.source.asked) == asked, "what is pinned was proven just now"


def test_another_namespace_has_an_answer_of_its_own(cluster: Cluster) -> None:
    first, second = cluster.node("node-a"), cluster.node("node-b", COMMITS[1])
    assert show(first) == COMMITS[0]
    assert show(second, context=context("others")) == COMMITS[1]


def test_a_commit_needs_no_call_and_so_does_a_driver_without_a_cluster(cluster: Cluster, node: Node) -> None:
    show(cluster.node("node-a"), context=context(revision=COMMITS[1]))
    assert cluster.pins.calls == []
    assert show(node) == COMMITS[0]


def test_a_pin_is_no_authorisation(cluster: Cluster) -> None:
    first, second = cluster.node("node-a"), cluster.node("node-b", COMMITS[1])
    for node in (first, second):
        node.source.readers = {"good"}
    show(first, secrets={"token": "good"})
    for node in (first, second):
        with pytest.raises(PermissionDenied):
            node.inline("csi-9", "pod9", context=context(), secrets={"token": "bad"})
    assert cluster.holders == ["node-a"]
    assert second.shown == []


def test_whoever_loses_the_race_takes_the_winners(cluster: Cluster) -> None:
    node, mine = (
        cluster.node("node-a", COMMITS[1]),
        CachePin.from_specs("team", MAIN, pinned(COMMITS[0]), cluster.node("node-b").source.digest),
    )
    node.source.go.clear()
    showing = threading.Thread(target=show, args=(node,))
    showing.start()
    while not node.source.asked:
        pass
    cluster.pins.add_holder(mine, PinHolder("node", "node-b"))
    node.source.go.set()
    showing.join()
    assert [record.digest for record in node.records.load_all_and_delete_unreadable()] == [mine.digest]
    assert cluster.holders == ["node-a", "node-b"]


def pinned(commit: str) -> CacheSpec:
    return CacheSpec(HubSpec("HuggingFace/Model", "org/name", commit))


def test_while_the_api_server_is_away_what_is_held_mounts_and_what_is_not_waits(cluster: Cluster) -> None:
    node = cluster.node("node-a")
    show(node)
    cluster.pins.away, node.now = True, node.now + 60
    node.source.commit = COMMITS[1]
    assert show(node, "csi-2", "pod2") == COMMITS[0]
    asked = len(node.source.asked)
    with pytest.raises(ClusterUnavailable):
        node.inline("csi-3", "pod3", context=context("others"), secrets={"token": "not used before"})
    assert len(node.source.asked) == asked
    assert node.shown == ["pod1", "pod2"]
    node.unpublish("csi-1")
    node.unpublish("csi-2", "pod2")
    with pytest.raises(ClusterUnavailable):
        node.pins.sync()
    cluster.pins.away = False
    node.pins.sync()
    assert cluster.holders == []


def test_a_restarted_plugin_knows_what_it_holds_also_while_the_api_server_is_away(cluster: Cluster) -> None:
    show(cluster.node("node-a"))
    cluster.pins.away = True
    again = cluster.node("node-a", COMMITS[1])
    assert show(again, "csi-2", "pod2") == COMMITS[0]
    cluster.pins.away = False
    again.pins.sync()
    assert cluster.holders == ["node-a"]
    for volume, path in (("csi-1", "pod1"), ("csi-2", "pod2")):
        hide(again, volume, path)
    assert cluster.holders == []


def test_a_hold_that_no_record_knows_of_goes_with_the_next_start(cluster: Cluster) -> None:
    """The plugin was killed in between, or the node's disk is a new one."""
    for namespace, name in (("team", "node-a"), ("team", "node-b"), ("others", "node-a")):
        cluster.pins.add_holder(
            CachePin.from_specs(namespace, MAIN, pinned(COMMITS[0]), "a" * 64), PinHolder("node", name)
        )
    cluster.node("node-a").pins.sync()
    assert cluster.holders == ["node-b"]


def test_a_volume_that_is_being_filled_holds_and_one_that_nobody_comes_back_for_does_not(
    cluster: Cluster,
) -> None:
    node = cluster.node("node-a")
    node.source.go_fill.clear()
    with pytest.raises(Busy):
        node.inline(context=context(), seconds=0.2)
    node.pins.sync()
    assert cluster.holders == ["node-a"]
    node.now += 700
    node.pins.sync()
    assert cluster.holders == []
    node.source.go_fill.set()


def test_a_volume_that_fails_for_good_holds_nothing(cluster: Cluster) -> None:
    node = cluster.node("node-a")
    node.source.fill_error = PermissionDenied("no bytes for you")
    with pytest.raises(PermissionDenied):
        node.inline(context=context())
    node.pins.sync()
    assert cluster.holders == []


def test_a_commit_that_is_gone_names_the_pin_and_how_to_release_it(cluster: Cluster) -> None:
    first, second = cluster.node("node-a"), cluster.node("node-b", COMMITS[1])
    show(first)
    second.source.error = SourceNotFound("there is no such revision")
    with pytest.raises(FailedPrecondition, match="there is no such revision") as error:
        second.inline(context=context())
    assert f"CachePin team/{NAME}" in str(error.value)
    assert f"kubectl delete cachepin -n team {NAME}" in str(error.value)
    assert cluster.holders == ["node-a"]
    second.source.error = None
    cluster.pins.delete("team", NAME)
    second.now += 60
    assert show(second, secrets={"token": "new"}) == COMMITS[1]
    first.now += 1000
    first.pins.sync()
    assert cluster.holders == ["node-b"], "what shows the old commit does not come back"


def test_a_pin_that_somebody_deleted_does_not_come_back_by_itself(cluster: Cluster) -> None:
    node = cluster.node("node-a")
    show(node)
    cluster.pins.delete("team", NAME)
    node.now += 1000
    node.pins.sync()
    assert cluster.holders == []


def test_a_node_that_was_swept_by_mistake_holds_again(cluster: Cluster) -> None:
    first, second = cluster.node("node-a"), cluster.node("node-b")
    show(first)
    show(second)
    cluster.pins.remove_holder("team", NAME, PinHolder("node", "node-a"))
    first.now += 1000
    first.pins.sync()
    assert cluster.holders == ["node-a", "node-b"]


def test_a_source_without_revisions_is_pinned_by_what_it_held(cluster: Cluster) -> None:
    nas = {
        **context(),
        **dict.fromkeys(("repoId", "repoSource", "revision"), ""),
        "server": "nas",
        "path": "/models",
    }
    nas = {key: value for key, value in nas.items() if value}
    first, second = cluster.node("node-a", nas=("*",)), cluster.node("node-b", COMMITS[1], nas=("*",))
    first.inline(context=nas)
    with pytest.raises(
        FailedPrecondition,
        match=r"CachePin team/pin-\w+ pins NAS nas:/models, but: .*kubectl delete cachepin",
    ):
        second.inline(context=nas)


@pytest.mark.parametrize(
    "forged",
    [
        replace(MAIN, source=HubSpec("HuggingFace/Model", "org/secret", COMMITS[0])),
        replace(MAIN, source=HubSpec("ModelScope/Model", "org/name", COMMITS[0])),
        replace(MAIN, source=HubSpec("HuggingFace/Model", "org/name", COMMITS[0], ("*.json",))),
    ],
)
def test_a_pin_that_somebody_wrote_leads_to_no_other_source(cluster: Cluster, forged: CacheSpec) -> None:
    cluster.pins.add_holder(CachePin.from_specs("team", MAIN, forged, "a" * 64), PinHolder("node", "x"))
    node = cluster.node("node-a")
    with pytest.raises(FailedPrecondition, match="names another source"):
        node.inline(context=context())
    assert node.source.asked == []


def test_a_storm_of_pods_asks_little_whatever_their_number(cluster: Cluster) -> None:
    node, count = cluster.node("node-a", seats=40), 30
    threads = [
        threading.Thread(target=show, args=(node, f"csi-{number}", f"pod{number}")) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(node.shown) == count
    assert sorted(set(cluster.pins.calls)) == ["get", "hold"]
    assert len(cluster.pins.calls) <= 2
