"""What pins in a cluster do beyond a fake: status, sweeping, rights, few calls. On a real API server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from csi.errors import ClusterForbids, FailedPrecondition
from csi.registry.garbage_collector import GarbageCollector
from csi.registry.pins.codec import HOLDER_FIELDS, encode
from csi.registry.pins.kubernetes import KubernetesPinRegistry, PinHolderReferences, pins_path
from csi.registry.pins.pins import CachePin, PinHolder
from tests.apiserver import NODE as NODE_USER
from tests.apiserver import ApiServer
from tests.csi.registry.pins.test_pins import NODE, OTHER, VOLUME, pin
from tests.csi.registry.rights import NODE_RIGHTS, grant
from tests.csi.registry.volumes.test_kubernetes import Counted, forbidden
from tests.origins.onc_rpc import wait_until


@pytest.fixture
def pins(cluster: ApiServer) -> KubernetesPinRegistry:
    return KubernetesPinRegistry(cluster.client())


@pytest.fixture
def nodes(cluster: ApiServer) -> Iterator[Callable[..., None]]:
    """Makes the cluster have these nodes and no other."""

    def have(*names: str) -> None:
        cluster.kubectl("delete", "nodes", "--all")
        items = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in names]
        if items:
            cluster.kubectl("apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": items})

    yield have
    have()


def kept(pins: KubernetesPinRegistry) -> CachePin:
    found = pins.get("default", pin().name)
    assert found
    return found


def test_holding_and_leaving_take_few_calls(cluster: ApiServer) -> None:
    server = Counted(cluster.access())
    pins = KubernetesPinRegistry(server)
    for holder in (NODE, OTHER):
        pins.add_holder(pin(), holder)
        pins.remove_holder("default", pin().name, holder)
    assert [call.split()[0] for call in server.calls] == ["GET", "POST", "PATCH", "DELETE"] * 2
    server.calls.clear()
    pins.add_holder(pin(), NODE)
    pins.add_holder(pin(), OTHER)
    pins.add_holder(pin(), OTHER)
    assert [call.split()[0] for call in server.calls] == ["GET", "POST", "GET", "PATCH", "GET"]


def test_one_is_not_joined_that_was_made_anew_meanwhile(
    cluster: ApiServer, pins: KubernetesPinRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen as it was, removed, and made anew by another node with another answer: the newcomer gets that
    one, and is on it."""
    pins.add_holder(pin(), NODE)
    other, seen, look = KubernetesPinRegistry(cluster.client()), [], pins._get_object

    def stale(namespace: str, name: str) -> object:
        found = look(namespace, name)
        if not seen:
            seen.append(found)
            other.remove_holder("default", pin().name, NODE)
            other.add_holder(pin(digest="b" * 64), NODE)
        return found

    monkeypatch.setattr(pins, "_get_object", stale)
    assert pins.add_holder(pin(), OTHER).digest == "b" * 64
    assert set(kept(other).holders) == {NODE, OTHER}


def test_one_whose_status_was_written_as_its_last_holder_left_goes_all_the_same(
    pins: KubernetesPinRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.add_holder(pin(), NODE)
    remove, tell = pins._delete_unchanged, KubernetesPinRegistry._update_status

    def late(thing: Mapping[str, Any]) -> None:
        tell(pins, pin().name, pins._get_object("default", pin().name))
        remove(thing)

    monkeypatch.setattr(pins, "_delete_unchanged", late)
    pins.remove_holder("default", pin().name, NODE)
    assert pins.get("default", pin().name) is None


def test_kubectl_shows_what_is_pinned_and_who_holds_it(
    cluster: ApiServer, pins: KubernetesPinRegistry
) -> None:
    def row() -> list[str]:
        return cluster.kubectl("get", "dcpin", "-A", "--no-headers").split()

    pins.add_holder(pin(), NODE)
    with pins.maintain_statuses():
        whole = [
            "default",
            pin().name,
            "HuggingFace/Model",
            "org/name",
            "main",
            "0123456789ab",
            "node-a.example",
        ]
        assert wait_until(lambda: row()[:7] == whole, 30), row()
        pins.add_holder(pin(), VOLUME)
        assert wait_until(lambda: "1 volume" in " ".join(row()), 30)
        for number in range(3):
            pins.add_holder(pin(), PinHolder("node", f"n{number}"))
        assert wait_until(lambda: "4 nodes, 1 volume" in " ".join(row()), 30)
        pins.add_holder(pin("kube-public"), NODE)
        assert wait_until(lambda: " ".join(row()).count("org/name") == 2, 30), (
            "the same name in another namespace is another pin"
        )


def test_a_holder_that_is_no_more_is_swept(
    cluster: ApiServer, pins: KubernetesPinRegistry, nodes: Callable[..., None]
) -> None:
    nodes("node-b")
    gone, young = PinHolder("volume", "dc-gone"), PinHolder("volume", "dc-young")
    for holder in (NODE, OTHER, VOLUME, gone):
        pins.add_holder(pin(), holder)
    holders = PinHolderReferences(pins, lambda volume_id: volume_id == "dc-1", lambda: time.time() + 700)
    sweeper = GarbageCollector(cluster.client(), [holders])
    sweeper.collect()
    assert set(kept(pins).holders) == {NODE, OTHER, VOLUME}, "a node may be registering anew"
    sweeper.collect()
    assert set(kept(pins).holders) == {OTHER, VOLUME}
    pins.add_holder(pin(), young)
    GarbageCollector(
        cluster.client(), [PinHolderReferences(pins, lambda volume_id: volume_id == "dc-1")]
    ).collect()
    assert young in kept(pins).holders, "a pin is held before its volume is recorded"


def test_a_pin_with_nobody_on_it_is_swept(cluster: ApiServer, pins: KubernetesPinRegistry) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=encode(pin()))
    GarbageCollector(cluster.client(), [PinHolderReferences(pins, lambda _: True)]).collect()
    assert pins.get("default", pin().name) is None


def test_a_pin_that_cannot_be_read_says_how_to_be_rid_of_it_and_harms_no_other(
    cluster: ApiServer, pins: KubernetesPinRegistry
) -> None:
    bad = json.loads(json.dumps(encode(replace(pin(), holders={NODE: 5.0}))))
    bad["spec"]["parameters"]["repoId"] = "org/other"
    cluster.kubectl("apply", "-f", "-", stdin=bad)
    pins.add_holder(pin("kube-public"), OTHER)
    with pytest.raises(
        FailedPrecondition,
        match=f"cannot be read .its name is not.*kubectl delete cachepin -n default {pin().name}",
    ):
        pins.get("default", pin().name)
    assert [found.namespace for found in pins.list_all()] == ["kube-public"]


def test_a_namespace_that_is_not_there_is_said(pins: KubernetesPinRegistry) -> None:
    with pytest.raises(Exception, match="nowhere"):
        pins.add_holder(pin("nowhere"), NODE)


def test_a_node_plugin_needs_each_of_its_rights_to_pins(cluster: ApiServer) -> None:
    registry = KubernetesPinRegistry(cluster.client(NODE_USER))

    def live() -> None:
        registry.add_holder(pin(), NODE)
        registry.add_holder(pin(), OTHER)
        list(registry.list_all())
        for holder in (NODE, OTHER):
            registry.remove_holder("default", pin().name, holder)

    grant(cluster, NODE_USER, NODE_RIGHTS)
    assert wait_until(lambda: not forbidden(live), 30)
    for missing in [right for right in NODE_RIGHTS if right[1] == "cachepins"]:
        cluster.forget_volumes()
        grant(cluster, NODE_USER, [right for right in NODE_RIGHTS if right != missing])
        assert wait_until(
            lambda verb=missing[2]: f'cannot {verb} resource "cachepins"' in forbidden(live), 30
        ), missing  # type: ignore[misc]
        with pytest.raises(ClusterForbids):
            live()


def test_every_kind_of_holder_has_its_place() -> None:
    thing = encode(replace(pin(), holders={NODE: 5.0, OTHER: 6.0, VOLUME: 7.0}))
    assert {field: sorted(thing["spec"][field]) for field in HOLDER_FIELDS.values()} == {
        "nodes": ["node-a.example", "node-b"],
        "volumes": ["dc-1"],
    }
    assert pins_path("default", pin().name).endswith(f"/namespaces/default/cachepins/{pin().name}")
