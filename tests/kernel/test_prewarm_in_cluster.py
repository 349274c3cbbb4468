"""The node plugin on a cluster: what CachePrewarms order is on the node before a pod asks for it, and
people see how far it is."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator

import pytest

from csi.registry.prewarms.prewarms import PrewarmedCache
from tests.apiserver import NODE, ApiServer
from tests.csi.registry.prewarms.kinds import apply, make_node, order, path, thing
from tests.csi.registry.rights import (
    NODE_PREWARM_RIGHTS,
    NODE_RIGHTS,
    NODE_SECRET_RIGHTS,
    NODE_TELLING_RIGHTS,
    grant,
)
from tests.kernel.machine import MIB, Machine, content, until
from tests.kernel.requests import OK
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

MODEL = {"repoId": "org/model"}
PRIVATE = PrewarmedCache({"repoId": "org/private"}, secret_name="hub-token")
MOST_MB = 64


@pytest.fixture(scope="module")
def machine(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Both programs on one cluster, the node plugin with its rights alone.

    A hub with a model, and one that a token opens.
    """
    folder, tree = tmp_path_factory.mktemp("ahead"), tmp_path_factory.mktemp("model")
    api_server.forget_volumes()
    make_node(api_server, "node-1", {"pool": "gpu"})
    grant(api_server, NODE, [*NODE_RIGHTS, *NODE_TELLING_RIGHTS, *NODE_PREWARM_RIGHTS, *NODE_SECRET_RIGHTS])
    with Hub() as hub:
        hub.repo("org/model", {"model.bin": content(tree / "model.bin", 24 * MIB)})
        hub.repo(
            "org/private",
            {"model.bin": content(tree / "private.bin", 2 * MIB)},
            private=True,
            tokens={"right"},
        )
        environment = {"HF_ENDPOINT": hub.endpoint, "KUBECONFIG": str(api_server.kubeconfig(NODE))}
        with Machine(folder, environment, ["--registry", "kubernetes"]) as running:
            yield running
    grant(api_server, NODE, [])
    shutil.rmtree(folder)


@pytest.fixture
def cluster(api_server: ApiServer, machine: Machine) -> Iterator[ApiServer]:
    """The cluster, whose orders go with the test."""
    yield api_server
    api_server.forget_volumes()


def row(cluster: ApiServer, name: str) -> list[str]:
    """Caches, nodes and progress, as kubectl get shows them."""
    return cluster.kubectl("get", "dcpw", name, "--no-headers").split()[1:4]


def secret(token: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub-token", "namespace": "default"},
        "stringData": {"token": token},
    }


def test_what_is_ordered_is_on_the_node_and_people_see_how_far_it_is(
    machine: Machine, cluster: ApiServer
) -> None:
    apply(
        cluster,
        thing(order("models", PrewarmedCache({**MODEL, "bandwidthLimit": "4Mi"}), selector={"pool": "gpu"})),
    )
    assert until(
        lambda: (
            cluster.kubectl("get", "dcpw", "models", "-o", "jsonpath={.status.nodes[0].state}") == "Filling"
        ),
        30,
    )
    assert until(lambda: row(cluster, "models") == ["1", "1/1", "100%"], 60)
    assert len(machine.sealed()) == 1
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "dcpw/models")
    pod = f"reader-{uuid.uuid4().hex[:8]}"
    assert machine.inline(pod, MODEL) == (OK, "")
    assert len(machine.logged("image sealed")) == 1
    assert machine.unpublish(pod) == (OK, "")
    assert cluster.kubectl("get", "dcpin", "-o", "jsonpath={.items[*].spec.nodes}").count("node-1") == 1


def test_another_node_s_order_is_left_alone(machine: Machine, cluster: ApiServer) -> None:
    sealed = machine.sealed()
    apply(cluster, thing(order("elsewhere", PRIVATE, selector={"pool": "cpu"})))
    apply(cluster, secret("right"))
    apply(cluster, thing(order("here", PRIVATE)))
    assert until(lambda: row(cluster, "here") == ["1", "1/1", "100%"], 60)
    assert len(machine.sealed()) == len(sealed) + 1
    assert "status" not in cluster.client().call("GET", path("default", "elsewhere"))


def test_a_wrong_token_shows_in_the_status_with_its_reason(machine: Machine, cluster: ApiServer) -> None:
    apply(cluster, secret("s3cr3t-of-nobody"))
    apply(cluster, thing(order("wrong", PRIVATE)))
    cluster.kubectl("wait", "--for=condition=Failed", "--timeout=60s", "dcpw/wrong")
    said = cluster.kubectl("get", "dcpw", "wrong", "-o", "wide")
    assert "org/private" in said
    assert "node-1" in said
    assert not machine.logged("s3cr3t")
    assert "s3cr3t" not in cluster.kubectl("get", "dcpw", "wrong", "-o", "yaml")


def test_a_secret_that_the_node_may_not_get_shows_the_right_that_is_missing(
    machine: Machine, cluster: ApiServer
) -> None:
    rights = [*NODE_RIGHTS, *NODE_TELLING_RIGHTS, *NODE_PREWARM_RIGHTS]
    grant(cluster, NODE, rights)
    apply(cluster, thing(order("forbidden", PRIVATE, PrewarmedCache(MODEL))))
    cluster.kubectl("wait", "--for=condition=Failed", "--timeout=60s", "dcpw/forbidden")
    assert 'cannot get resource "secrets"' in cluster.kubectl(
        "get", "dcpw", "forbidden", "-o", "jsonpath={.status.nodes[0].message}"
    )
    grant(cluster, NODE, [*rights, *NODE_SECRET_RIGHTS])


def test_a_plugin_that_is_killed_goes_on_with_its_orders_and_stays_small(
    machine: Machine, cluster: ApiServer
) -> None:
    apply(cluster, thing(order("again", PrewarmedCache(MODEL))))
    assert until(lambda: row(cluster, "again") == ["1", "1/1", "100%"], 60)
    machine.plugins.node.kill()
    machine.restart_node()
    apply(cluster, secret("right"))
    apply(cluster, thing(order("more", PrewarmedCache(MODEL), PRIVATE)))
    assert until(lambda: row(cluster, "more") == ["2", "1/1", "100%"], 60)
    resident = machine.plugins.node.resident_bytes() / 1e6
    print(f"\nresident after prewarming: {resident:.1f} MB")
    assert resident <= MOST_MB
