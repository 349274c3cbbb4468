"""Nodes that cannot mount volumes, that are drained, and that are gone for good: pods read on elsewhere,
and people see why."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.cluster.installed import NAMESPACE, Driver, image_files, lives, loops_over
from tests.cluster.kubectl import Object, condition
from tests.cluster.lab import Lab
from tests.cluster.node import Node
from tests.cluster.pods import applied
from tests.cluster.spaces import wait_for
from tests.cluster.test_two_nodes import entries, prewarm
from tests.cluster.test_volumes import empty, pods, settled, sum_in, volumes_of
from tests.cluster.volumes import DRIVER, claim, claim_volume, inline_volume, reader
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MIB = 1 << 20
MODEL = os.urandom(3 * MIB)
SUM = hashlib.sha256(MODEL).hexdigest()
HOST = "kubernetes.io/hostname"


@pytest.fixture(scope="module", autouse=True)
def models(hub: Hub) -> None:
    """A model that all read."""
    hub.repo("org/stays", {"model.bin": MODEL})


@contextmanager
def extra_node(lab: Lab, erofs: bool = True) -> Iterator[Node]:
    """One more node, on which the driver has registered itself; the block may have removed it."""
    node = lab.add_node(erofs)
    try:
        registered(lab, node)
        yield node
    finally:
        if node in lab.nodes:
            lab.remove_node(node)


def registered(lab: Lab, node: Node) -> None:
    """Wait until the scheduler knows what the driver says of the node."""
    lab.kubectl.wait("csinode", node.name, lambda found: topology_keys(found) is not None)


def topology_keys(csinode: Object) -> list[str] | None:
    """What the driver tells of a node's place, None where it is not registered."""
    drivers = csinode["spec"].get("drivers") or []
    return next((driver.get("topologyKeys") or [] for driver in drivers if driver["name"] == DRIVER), None)


def preferring(node: Node) -> Object:
    """The affinity of a pod that the scheduler puts on `node` where it can."""
    term = {"matchExpressions": [{"key": HOST, "operator": "In", "values": [node.name]}]}
    return {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": term}]
        }
    }


def deployment(name: str, volume: Object, replicas: int, **spec: Any) -> Object:
    """Replicas of a reader of `volume`; `spec` goes into the pods'."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {**reader(name, volume)["spec"], **spec}}
    whole = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": whole,
    }


def where(lab: Lab, name: str) -> list[tuple[str, str]]:
    """The replicas of a Deployment that are ready and stay: pod and node."""
    found = [
        one
        for one in lab.kubectl.list("pod", "default", f"app={name}")
        if lives(one) and condition(one, "Ready") == "True"
    ]
    return sorted((one["metadata"]["name"], one["spec"]["nodeName"]) for one in found)


def on(lab: Lab, name: str, *nodes: Node, seconds: float = 60) -> None:
    """Wait until a replica of a Deployment runs on each of these nodes and none elsewhere.

    They read the model.
    """
    names = sorted(node.name for node in nodes)
    try:
        wait_for(lambda: sorted(node for _, node in where(lab, name)) == names, seconds, f"{name} on {names}")
    except AssertionError as error:
        raise AssertionError(
            f"{error}: {lab.kubectl.run('describe', 'pod', '-l', f'app={name}')[-4000:]}"
        ) from None
    assert {sum_in(lab, pod) for pod, _ in where(lab, name)} == {SUM}


def test_a_drained_node_has_no_mounts_and_its_pods_read_the_same_elsewhere(
    lab: Lab, driver: Driver, second_node: Node
) -> None:
    first = lab.nodes[0]
    registered(lab, second_node)
    spread = {
        "maxSkew": 1,
        "topologyKey": HOST,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "drained"}},
    }
    with (
        volumes_of(lab, {"repoId": "org/stays"}),
        applied(lab.kubectl, claim("drained", "models")),
        applied(
            lab.kubectl, deployment("drained", claim_volume("drained"), 2, topologySpreadConstraints=[spread])
        ),
    ):
        on(lab, "drained", first, second_node)
        try:
            lab.kubectl.run(
                "drain", second_node.name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"
            )
            on(lab, "drained", first, first)
            empty(driver, second_node)
        finally:
            lab.kubectl.run("uncordon", second_node.name)
        with pods(lab, reader("back", claim_volume("drained"), node=second_node.name)):
            assert sum_in(lab, "back") == SUM
    settled(lab, driver)


def test_a_node_without_erofs_says_why_it_gets_no_volumes_and_keeps_no_pod_from_the_others(
    lab: Lab, driver: Driver, second_node: Node
) -> None:
    with (
        extra_node(lab, erofs=False) as node,
        volumes_of(lab, {"repoId": "org/stays"}, binding="WaitForFirstConsumer"),
        ExitStack() as stack,
    ):
        assert topology_keys(lab.kubectl.get("csinode", node.name)) == [f"{DRIVER}/plugin"]
        wait_for(
            lambda: "CannotMountVolumes" in lab.kubectl.run("describe", "node", node.name),
            20,
            "the node's event",
        )
        assert "kernel has no EROFS" in lab.kubectl.events(node.name)
        assert "load the module erofs at boot" in lab.kubectl.events(node.name)
        assert "node cannot mount volumes" in lab.kubectl.logs(driver.node_pod(node), NAMESPACE)

        prefers, kept_there = (
            reader("prefers", claim_volume("late")),
            reader("kept-there", claim_volume("late")),
        )
        prefers["spec"]["affinity"], kept_there["spec"]["nodeSelector"] = preferring(node), {HOST: node.name}
        stack.enter_context(applied(lab.kubectl, claim("late", "models")))
        stack.enter_context(pods(lab, prefers))
        assert sum_in(lab, "prefers") == SUM
        assert lab.kubectl.get("pod", "prefers")["spec"]["nodeName"] in {
            other.name for other in lab.nodes[:2]
        }

        forced = reader("forced", inline_volume({"repoId": "org/stays"}), node=node.name)
        stack.enter_context(applied(lab.kubectl, kept_there, forced))
        wait_for(
            lambda: "didn't match PersistentVolume's node affinity" in lab.kubectl.events("kept-there"),
            60,
            "the scheduler's event",
        )
        wait_for(lambda: "kernel has no EROFS" in lab.kubectl.events("forced"), 60, "kubelet's event")
        assert {lab.kubectl.get("pod", name)["status"]["phase"] for name in ("kept-there", "forced")} == {
            "Pending"
        }
    settled(lab, driver)


def test_a_node_that_is_gone_for_good_is_named_nowhere_and_its_pods_read_elsewhere(
    lab: Lab, driver: Driver, hub: Hub, second_node: Node
) -> None:
    hub.repo("org/half", {"model.bin": MODEL * 16})
    with ExitStack() as stack:
        node = stack.enter_context(extra_node(lab))
        stack.enter_context(volumes_of(lab, {"repoId": "org/stays"}))
        stack.enter_context(volumes_of(lab, {"repoId": "org/half"}, "halves"))
        stack.enter_context(
            applied(
                lab.kubectl,
                claim("stays", "models"),
                claim("half", "halves"),
                prewarm("everywhere", "org/stays"),
            )
        )
        moves = deployment("moves", claim_volume("stays"), 1, affinity=preferring(node))
        stack.enter_context(applied(lab.kubectl, moves))
        on(lab, "moves", node)
        named(lab, *lab.nodes)
        fill_on(lab, hub, stack, node)

        images = image_files(node)
        lab.remove_node(node)
        hub.faults.rate = None
        # As an operator does who does not wait for Kubernetes to find out, which takes it a minute.
        lab.kubectl.run("delete", "pod", "--force", "--field-selector", f"spec.nodeName={node.name}")
        wait_for(lambda: where(lab, "moves"), 60, "the pod's successor")
        assert {sum_in(lab, pod) for pod, _ in where(lab, "moves")} == {SUM}
        named(lab, *lab.nodes)
        wait_for(
            lambda: all("fills" not in one["status"] for one in lab.kubectl.list("cachevolumes", "")),
            30,
            "the fill to be forgotten",
        )
        assert loops_over(images) == []
    settled(lab, driver)


def named(lab: Lab, *nodes: Node) -> None:
    """Wait until these nodes and no other hold the pin and are shown to have what everybody is to have."""
    states = {node.name: ("Ready", 100) for node in nodes}
    lab.kubectl.wait(
        "cacheprewarm",
        "everywhere",
        lambda found: entries(found) == states and found["status"]["ready"] == f"{len(nodes)}/{len(nodes)}",
    )
    (pin,) = [one for one in lab.kubectl.list("cachepins") if "org/stays" in str(one["spec"])]
    lab.kubectl.wait(
        "cachepin", pin["metadata"]["name"], lambda found: set(found["spec"]["nodes"]) == set(states)
    )


def fill_on(lab: Lab, hub: Hub, stack: ExitStack, node: Node) -> None:
    """A fill is under way on the node, and shown."""
    hub.faults.rate = MIB
    stack.callback(setattr, hub.faults, "rate", None)
    stack.enter_context(applied(lab.kubectl, reader("half", claim_volume("half"), node=node.name)))
    (half,) = [
        one["metadata"]["name"]
        for one in lab.kubectl.list("cachevolumes", "")
        if "org/half" in str(one["spec"])
    ]
    lab.kubectl.wait(
        "cachevolume",
        half,
        lambda found: [fill["node"] for fill in found["status"].get("fills", [])] == [node.name],
    )
