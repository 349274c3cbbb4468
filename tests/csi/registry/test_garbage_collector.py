"""Nodes that are gone go from every kind of object that names them, on a real API server.

Nodes that are there stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from controller_plugin.leader import Leader
from csi.cluster.api_server import MERGE_PATCH
from csi.errors import DataCacheError
from csi.registry.custom_resource import format_time
from csi.registry.garbage_collector import GarbageCollector, NodeReferences
from csi.registry.pins.kubernetes import KubernetesPinRegistry, PinHolderReferences
from csi.registry.pins.pins import PinHolder
from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms, PrewarmReferences
from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmedCache, PrewarmState
from csi.registry.volumes.fill_status import FillReferences, FillStatusWriter, patch_without_nodes
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from tests.apiserver import VOLUMES, ApiServer
from tests.csi.registry.kinds import record
from tests.csi.registry.pins.test_pins import pin
from tests.csi.registry.prewarms import kinds
from tests.csi.registry.prewarms.kinds import READY, order
from tests.origins.onc_rpc import wait_until

STAYS, GOES = "node-stays", "node-goes"


class Pins:
    """Nodes that hold a pin."""

    def __init__(self, cluster: ApiServer) -> None:
        self._registry = KubernetesPinRegistry(cluster.client())
        self.traces: NodeReferences = PinHolderReferences(self._registry, lambda _: True)

    def name(self, node: str) -> None:
        self._registry.add_holder(pin(), PinHolder("node", node))

    def named(self) -> set[str]:
        kept = self._registry.get("default", pin().name)
        return {holder.name for holder in kept.holders} if kept else set()


class Fills:
    """Nodes that fill a volume."""

    def __init__(self, cluster: ApiServer) -> None:
        self._cluster = cluster
        KubernetesVolumeRegistry(cluster.client()).put(record("dc-1"))
        self.traces: NodeReferences = FillReferences(cluster.client())

    def name(self, node: str) -> None:
        FillStatusWriter(self._cluster.client(), node).write("dc-1", 40)

    def named(self) -> set[str]:
        return {fill["node"] for fill in self.status().get("fills", [])}

    def status(self) -> dict[str, Any]:
        return self._cluster.client().call("GET", f"{VOLUMES}/dc-1").get("status", {})  # type: ignore[no-any-return]


class Prewarms:
    """Nodes that have what an order says."""

    def __init__(self, cluster: ApiServer) -> None:
        self._cluster, self.orders = cluster, kinds.InCluster(cluster)
        self.made = self.orders.put(order("one", PrewarmedCache({"repoId": "org/model"})))
        self.traces: NodeReferences = PrewarmReferences(cluster.client())

    def name(self, node: str, state: NodePrewarmState = READY) -> None:
        KubernetesNodePrewarms(self._cluster.client(), node, self.orders.registry)._write_status(
            self.made, state
        )

    def named(self) -> set[str]:
        return {entry["node"] for entry in self.orders.status(self.made.key).get("nodes") or []}


@pytest.fixture
def nodes(cluster: ApiServer) -> Iterator[Callable[..., None]]:
    """Makes the cluster have these nodes and no other."""

    def have(*names: str) -> None:
        cluster.kubectl("delete", "nodes", "--all")
        for name in names:
            kinds.make_node(cluster, name, {})

    yield have
    have()


@pytest.fixture(params=[Pins, Fills, Prewarms])
def kind(request: pytest.FixtureRequest, cluster: ApiServer) -> Any:
    """An object that names STAYS and GOES."""
    made = request.param(cluster)
    for node in (STAYS, GOES):
        made.name(node)
    return made


def test_a_node_that_was_missing_twice_is_named_no_more(
    cluster: ApiServer, kind: Any, nodes: Callable[..., None]
) -> None:
    sweeper = GarbageCollector(cluster.client(), [kind.traces])
    nodes(STAYS)
    sweeper.collect()
    assert kind.named() == {STAYS, GOES}, "kubelet may be making its object anew"
    sweeper.collect()
    assert kind.named() == {STAYS}
    nodes()
    for _ in range(2):
        sweeper.collect()
    assert kind.named() == set()


def test_a_node_that_is_back_at_the_next_look_stays(
    cluster: ApiServer, kind: Any, nodes: Callable[..., None]
) -> None:
    sweeper = GarbageCollector(cluster.client(), [kind.traces])
    for present in ((STAYS,), (STAYS, GOES), (STAYS,), (STAYS, GOES)):
        nodes(*present)
        sweeper.collect()
    assert kind.named() == {STAYS, GOES}


def test_what_changes_under_the_sweep_is_not_lost(
    cluster: ApiServer, kind: Any, nodes: Callable[..., None]
) -> None:
    nodes(STAYS, "node-comes")
    kind.traces.list_nodes()
    kind.name("node-comes")
    kind.traces.remove_stale(frozenset({GOES}))
    assert {STAYS, "node-comes"} <= kind.named()
    kind.traces.list_nodes()
    kind.traces.remove_stale(frozenset({GOES}))
    assert kind.named() == {STAYS, "node-comes"}


def test_numbers_and_conditions_of_an_order_are_those_of_the_nodes_that_are_left(
    cluster: ApiServer, nodes: Callable[..., None]
) -> None:
    prewarms, sweeper = (
        Prewarms(cluster),
        GarbageCollector(cluster.client(), [PrewarmReferences(cluster.client())]),
    )
    prewarms.name(STAYS)
    prewarms.name(GOES, NodePrewarmState(PrewarmState.FAILED, 41, "no room"))
    nodes(STAYS)
    for _ in range(2):
        sweeper.collect()
    status = prewarms.orders.status(prewarms.made.key)
    assert (status["ready"], status["progress"]) == ("1/1", "100%")
    assert {one["type"]: one["status"] for one in status["conditions"]} == {
        "Ready": "True",
        "Progressing": "False",
        "Failed": "False",
    }


def test_the_words_of_a_volumes_fills_are_those_of_the_nodes_that_are_left(
    cluster: ApiServer, nodes: Callable[..., None]
) -> None:
    fills, sweeper = Fills(cluster), GarbageCollector(cluster.client(), [FillReferences(cluster.client())])
    for node in (STAYS, GOES):
        fills.name(node)
    assert fills.status()["filling"] == "40% on 2 nodes"
    nodes(STAYS)
    for _ in range(2):
        sweeper.collect()
    assert fills.status()["filling"] == "40%"


def test_a_fill_that_was_lost_on_a_node_that_is_there_goes_too(
    cluster: ApiServer, nodes: Callable[..., None]
) -> None:
    """As of a plugin that was killed, and its pod deleted before it was back."""
    fills, later = Fills(cluster), time.time() + 300
    fills.name(STAYS)
    nodes(STAYS)
    GarbageCollector(cluster.client(), [FillReferences(cluster.client(), lambda: later)]).collect()
    assert fills.status() == {}
    assert (
        patch_without_nodes(
            {"fills": [{"node": STAYS, "percent": 5, "updated": format_time(later)}]}, set(), later
        )
        is None
    )


def test_one_kind_that_cannot_be_swept_keeps_no_other_from_it(
    cluster: ApiServer, nodes: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        kind = "Broken"

        def list_nodes(self) -> frozenset[str]:
            raise DataCacheError("the CRDs are missing")

        def remove_stale(self, gone: frozenset[str]) -> None:
            raise AssertionError("nobody knows what is there")

    pins = Pins(cluster)
    pins.name(GOES)
    pins.name(STAYS)
    # A time that somebody wrote by hand.
    fills = Fills(cluster)
    odd = {"fills": [{"node": GOES, "percent": 5, "updated": "2026-01-31T12:00:00.5Z"}]}
    cluster.client().call("PATCH", f"{VOLUMES}/dc-1/status", body={"status": odd}, content_type=MERGE_PATCH)
    nodes(STAYS)
    sweeper = GarbageCollector(cluster.client(), [Broken(), fills.traces, pins.traces])
    for _ in range(2):
        sweeper.collect()
    assert pins.named() == {STAYS}
    assert {str(line.fields["reason"]) for line in caplog.records if hasattr(line, "fields")} >= {
        "the CRDs are missing",
        "ValueError",
    }


def test_whoever_leads_sweeps(cluster: ApiServer, nodes: Callable[..., None]) -> None:
    server = cluster.client()
    prewarms = Prewarms(cluster)
    prewarms.name(GOES)
    nodes(STAYS)
    with Leader(server, KubernetesVolumeRegistry(server), KubernetesPinRegistry(server), 0.2).campaign(
        "sweeping"
    ):
        assert wait_until(lambda: prewarms.named() == set(), 30)


def test_where_no_node_is_named_the_nodes_are_not_listed(cluster: ApiServer) -> None:
    from tests.csi.registry.volumes.test_kubernetes import Counted

    server = Counted(cluster.access())
    Leader(
        server, KubernetesVolumeRegistry(server), KubernetesPinRegistry(server)
    ).build_garbage_collector().collect()
    assert len(server.calls) == 3
    assert not any("/nodes" in call for call in server.calls)
