"""What every kind of prewarm orders does: the objects of a cluster, on a real API server, and the fake."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest

from csi.errors import ClusterForbids, FailedPrecondition
from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms
from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmedCache, PrewarmState
from csi.registry.prewarms.status import MAX_REPORTED_NODES, patch_with_node
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from csi.registry.volumes.record import volume_id_from_name
from tests.apiserver import NODE, ApiServer
from tests.csi.registry.kinds import record
from tests.csi.registry.prewarms.kinds import READY, InCluster, InMemory, bind, make_node, order
from tests.csi.registry.rights import NODE_PREWARM_RIGHTS, NODE_SECRET_RIGHTS, grant
from tests.csi.registry.volumes.test_kubernetes import Counted, forbidden
from tests.origins.onc_rpc import wait_until

MODEL, PRIVATE = (
    PrewarmedCache({"repoId": "org/model"}),
    PrewarmedCache({"repoId": "org/private"}, secret_name="hub-token"),
)
CLAIMED = PrewarmedCache(pvc_name="models", secret_name="hub-token")


@pytest.fixture(params=["in memory", "in a cluster"])
def orders(request: pytest.FixtureRequest) -> Iterator[Any]:
    """No orders yet, for a node of pool gpu."""
    found: Any = InMemory() if request.param == "in memory" else InCluster(request.getfixturevalue("cluster"))
    yield found
    found.close()


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in status.get("conditions", [])}


def test_an_order_is_found_as_it_was_given(orders: Any) -> None:
    made = orders.put(order("one", MODEL, PRIVATE, CLAIMED, selector={"pool": "gpu"}))
    other = orders.put(order("two", MODEL))
    assert sorted(orders.prewarms.list_requests(), key=lambda found: found.name) == [made, other]
    orders.remove(made.key)
    assert orders.prewarms.list_requests() == [other]


def test_a_change_is_another_generation_and_is_heard_of(orders: Any) -> None:
    heard = queue.Queue[str]()
    first = orders.put(order("one", MODEL))
    with orders.prewarms.watch(heard.put):
        second = orders.put(order("one", PRIVATE))
        assert heard.get(timeout=20) == "one"
        assert second.generation == first.generation + 1
        assert second.uid == first.uid
        orders.remove("default/one")
        assert heard.get(timeout=20) == "one"


def test_what_a_node_reports_is_shown_in_numbers_and_conditions_and_wakes_no_watcher(orders: Any) -> None:
    made, heard = orders.put(order("one", MODEL, PRIVATE)), list[str]()
    with orders.prewarms.watch(heard.append):
        orders.prewarms.report_state(made, NodePrewarmState(PrewarmState.FILLING, 41))
        assert wait_until(
            lambda: (
                orders.status(made.key).get("nodes")
                == [{"node": "node-1", "state": "Filling", "percent": 41}]
            ),
            20,
        )
        status = orders.status(made.key)
        assert (status["caches"], status["ready"], status["progress"]) == (2, "0/1", "41%")
        assert conditions(status) == {"Ready": "False", "Progressing": "True", "Failed": "False"}
        orders.prewarms.report_state(made, NodePrewarmState(PrewarmState.FAILED, 41, "no room"))
        assert wait_until(lambda: conditions(orders.status(made.key))["Failed"] == "True", 20)
        assert "node-1: no room" in next(
            c["message"] for c in orders.status(made.key)["conditions"] if c["type"] == "Failed"
        )
        orders.prewarms.report_state(made, READY)
        assert wait_until(lambda: orders.status(made.key)["ready"] == "1/1", 20)
        assert conditions(orders.status(made.key)) == {
            "Ready": "True",
            "Progressing": "False",
            "Failed": "False",
        }
        orders.prewarms.report_state(made, None)
        assert wait_until(lambda: orders.status(made.key)["ready"] == "0/0", 20)
        assert not heard


def test_news_of_an_order_that_has_changed_or_gone_is_not_shown(orders: Any) -> None:
    before = orders.put(order("one", MODEL))
    made = orders.put(order("one", PRIVATE))
    orders.prewarms.report_state(before, READY)
    orders.prewarms.report_state(made, NodePrewarmState(PrewarmState.PENDING))
    assert wait_until(
        lambda: (
            orders.status(made.key).get("nodes") == [{"node": "node-1", "state": "Pending", "percent": 0}]
        ),
        20,
    )
    orders.remove(made.key)
    orders.prewarms.report_state(made, READY)


def test_labels_secrets_and_claims_are_looked_up_by_name(orders: Any) -> None:
    orders.add_secret("hub-token", {"token": "s3cr3t"})
    kept = record(volume_id_from_name("pvc-models"), name="pvc-models")
    orders.add_claim("ordered-models", kept)
    assert orders.prewarms.read_node_labels()["pool"] == "gpu"
    assert orders.prewarms.read_secret("default", "hub-token") == {"token": "s3cr3t"}
    assert orders.prewarms.get_volume_of_pvc("default", "ordered-models") == kept
    with pytest.raises(FailedPrecondition, match="the Secret default/none does not exist"):
        orders.prewarms.read_secret("default", "none")
    with pytest.raises(FailedPrecondition, match="the PVC default/none does not exist"):
        orders.prewarms.get_volume_of_pvc("default", "none")


def test_a_claim_that_only_says_that_it_is_of_a_volume_has_no_cache(cluster: ApiServer) -> None:
    orders = InCluster(cluster)
    orders.registry.put(record(volume_id_from_name("pvc-of-another"), name="pvc-of-another"))
    bind(cluster, "pretender", "pvc-of-another", phase="Pending")
    with pytest.raises(FailedPrecondition, match="it is not bound to a PV"):
        orders.prewarms.get_volume_of_pvc("default", "pretender")
    bind(cluster, "static", "somebody-elses")
    with pytest.raises(FailedPrecondition, match="its PV somebody-elses is not one of this driver"):
        orders.prewarms.get_volume_of_pvc("default", "static")
    orders.close()


def test_what_is_no_text_in_a_secret_is_refused_and_not_repeated(cluster: ApiServer) -> None:
    orders = InCluster(cluster)
    cluster.kubectl(
        "apply",
        "-f",
        "-",
        stdin={"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "odd"}, "data": {"token": "//8="}},
    )
    with pytest.raises(FailedPrecondition, match="a value that is not text"):
        orders.prewarms.read_secret("default", "odd")
    orders.close()


def test_many_nodes_that_report_at_once_are_all_shown(cluster: ApiServer) -> None:
    made = (first := InCluster(cluster)).put(order("one", MODEL))
    nodes = [
        KubernetesNodePrewarms(cluster.client(), f"node-{number}", first.registry) for number in range(12)
    ]
    for node in nodes:
        node.report_state(made, READY)
    assert wait_until(lambda: first.status(made.key).get("ready") == "12/12", 30)
    assert "12/12" in cluster.kubectl("get", "dcpw", "one")
    for node in [*nodes, first]:
        node.close()


def test_a_status_is_bounded_and_a_new_generation_begins_anew() -> None:
    made, status = order("one", MODEL), dict[str, Any]()
    for number in range(MAX_REPORTED_NODES + 20):
        status |= (
            patch_with_node(
                made, status, f"node-{number}", NodePrewarmState(PrewarmState.FAILED, 0, "x" * 5000), 1e9
            )
            or {}
        )
    assert len(status["nodes"]) == MAX_REPORTED_NODES
    assert len(str(status)) < 200_000
    assert (
        patch_with_node(made, status, "node-1", NodePrewarmState(PrewarmState.FAILED, 0, "x" * 5000), 2e9)
        is None
    ), "nothing new is nothing to write"
    since = {condition["type"]: condition["lastTransitionTime"] for condition in status["conditions"]}
    status |= patch_with_node(made, status, "node-1", READY, 2e9) or {}
    assert {condition["type"]: condition["lastTransitionTime"] for condition in status["conditions"]} == since
    changed = order("one", PRIVATE).__class__(made.namespace, made.name, "", 1, made.caches)
    assert len((patch_with_node(changed, status, "node-1", READY, 3e9) or {})["nodes"]) == 1


def test_watching_costs_a_list_and_a_watch_and_a_report_two_calls(cluster: ApiServer) -> None:
    server = Counted(cluster.access())
    prewarms, orders = (
        KubernetesNodePrewarms(server, "node-1", KubernetesVolumeRegistry(cluster.client())),
        InCluster(cluster),
    )
    made = orders.put(order("one", MODEL))
    with prewarms.watch(lambda name: None):
        assert wait_until(lambda: len(server.calls) == 2, 20)
        prewarms.report_state(made, READY)
        assert wait_until(lambda: orders.status(made.key).get("ready") == "1/1", 20)
    assert [call.split()[0] for call in server.calls] == [
        "GET",
        "GET",
        "GET",
        "PATCH",
    ]
    assert "watch=1" in server.calls[1]
    prewarms.close()
    orders.close()


def test_a_node_needs_each_of_its_rights_and_no_other(cluster: ApiServer) -> None:
    orders = InCluster(cluster)
    orders.add_secret("hub-token", {"token": "t"})
    orders.add_claim("ordered-models", record(volume_id_from_name("pvc-models"), name="pvc-models"))
    made = orders.put(order("one", MODEL))
    node = KubernetesNodePrewarms(cluster.client(NODE), "node-1", orders.registry)

    def life() -> str:
        def work() -> None:
            node.list_requests()
            node.read_node_labels()
            node.read_secret("default", "hub-token")
            node.get_volume_of_pvc("default", "ordered-models")
            for state in (NodePrewarmState(PrewarmState.PENDING), None):
                node._write_status(made, state)
            query = {"watch": "1", "timeoutSeconds": "1"}
            with node._server.stream("/apis/datacache.csi.io/v1alpha1/cacheprewarms", query, 5.0) as stream:
                stream.stop()

        return forbidden(work)

    rights = [*NODE_PREWARM_RIGHTS, *NODE_SECRET_RIGHTS]
    grant(cluster, NODE, rights)
    assert wait_until(lambda: not life(), 30)
    for missing in rights:
        grant(cluster, NODE, [right for right in rights if right != missing])
        assert wait_until(lambda missing=missing: f"cannot {missing[2]} resource" in life(), 30), missing  # type: ignore[misc]
    with pytest.raises(ClusterForbids, match='cannot get resource "secrets"'):
        node.read_secret("default", "hub-token")
    grant(cluster, NODE, [])
    node.close()
    orders.close()


def test_a_node_that_the_cluster_has_not_has_no_labels(cluster: ApiServer) -> None:
    make_node(cluster, "node-2", {"pool": "cpu"})
    assert (
        KubernetesNodePrewarms(
            cluster.client(), "node-2", KubernetesVolumeRegistry(cluster.client())
        ).read_node_labels()["pool"]
        == "cpu"
    )
