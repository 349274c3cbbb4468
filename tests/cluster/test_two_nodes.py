"""Volumes on two nodes at once: one answer of a branch that moves, caches that are there before pods,
volumes deleted while they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster.installed import Driver
from tests.cluster.kubectl import Object, condition
from tests.cluster.lab import Lab
from tests.cluster.node import Node
from tests.cluster.pods import applied
from tests.cluster.spaces import wait_for
from tests.cluster.test_volumes import empty, pods, settled, sum_in, volumes_of
from tests.cluster.volumes import claim, claim_volume, inline_volume, reader
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MIB = 1 << 20
OLD, NEW = os.urandom(3 * MIB), os.urandom(3 * MIB)
POOL = "test/pool"


def sum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def on_each(lab: Lab, name: str, volume: Object) -> list[Object]:
    """A pod for each of the two nodes that has the volume, without asking the scheduler."""
    return [reader(f"{name}-{node.number}", volume, node=node.name) for node in lab.nodes[:2]]


@contextmanager
def labelled(lab: Lab, *nodes: Node) -> Iterator[None]:
    """The nodes are of the pool that is warmed, for the block."""
    names = [node.name for node in nodes]
    lab.kubectl.run("label", "node", *names, f"{POOL}=warm")
    try:
        yield
    finally:
        lab.kubectl.run("label", "node", *names, f"{POOL}-")


def prewarm(name: str, repository: str, **selector: str) -> Object:
    """The caches of a repository on the nodes with these labels."""
    spec = {"nodeSelector": selector, "caches": [{"parameters": {"repoId": repository}}]}
    return {
        "apiVersion": "datacache.csi.io/v1alpha1",
        "kind": "CachePrewarm",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def entries(prewarmed: Object) -> dict[str, Any]:
    """What a CachePrewarm shows of each node: state and percent."""
    return {
        one["node"]: (one["state"], one["percent"]) for one in prewarmed.get("status", {}).get("nodes", [])
    }


def test_replicas_on_two_nodes_read_what_the_branch_was_until_the_last_has_gone(
    lab: Lab, driver: Driver, hub: Hub, second_node: Node
) -> None:
    repository = hub.repo("org/moving", {"model.bin": OLD})
    pinned = repository.branches["main"]
    first, second = on_each(lab, "replica", inline_volume({"repoId": "org/moving"}))
    with pods(lab, first):
        repository.update({"model.bin": NEW})
        with pods(lab, second):
            assert {sum_in(lab, one["metadata"]["name"]) for one in (first, second)} == {sum_of(OLD)}
            (pin,) = lab.kubectl.list("cachepins")
            held = f"{lab.nodes[0].name}, {second_node.name}"
            shown = lab.kubectl.wait(
                "cachepin", pin["metadata"]["name"], lambda one: one.get("status", {}).get("holders") == held
            )["status"]
            assert (shown["revision"], shown["pin"]) == ("main", pinned[:12])
            for one in (first, second):
                wait_for(
                    lambda one=one: f"org/moving@{pinned}" in told(lab, one, "CachePinned"),
                    20,
                    "the event of the pin",
                )  # type: ignore[misc]
    wait_for(lambda: lab.kubectl.list("cachepins") == [], 60, "the pin to go with its last holder")
    with pods(lab, first, second):
        assert {sum_in(lab, one["metadata"]["name"]) for one in (first, second)} == {sum_of(NEW)}
    settled(lab, driver)


def told(lab: Lab, pod: Object, reason: str) -> str:
    """The events of a pod for a reason."""
    return "\n".join(
        line
        for line in lab.kubectl.events(pod["metadata"]["name"]).splitlines()
        if line.startswith(f"{reason}: ")
    )


def test_what_a_pool_was_told_to_have_is_there_before_its_pods_and_nowhere_else(
    lab: Lab, driver: Driver, hub: Hub, second_node: Node
) -> None:
    # Bytes of their own: what another repository has brought already would be no prewarm's doing.
    warm = os.urandom(3 * MIB)
    hub.repo("org/warm", {"model.bin": warm})
    hub.repo("org/warm-on-one", {"model.bin": warm[::-1]})
    one = {"kubernetes.io/hostname": second_node.name}
    before = driver.images(lab.nodes[0])
    with (
        labelled(lab, *lab.nodes[:2]),
        applied(
            lab.kubectl,
            prewarm("both", "org/warm", **{POOL: "warm"}),
            prewarm("one", "org/warm-on-one", **one),
        ),
    ):
        for name, nodes in (("both", lab.nodes[:2]), ("one", [second_node])):
            wanted = len(nodes)
            ready = lab.kubectl.wait(
                "cacheprewarm",
                name,
                lambda found, count=wanted: (
                    condition(found, "Ready") == "True" and len(entries(found)) >= count
                ),
            )
            assert entries(ready) == {node.name: ("Ready", 100) for node in nodes}
            assert (ready["status"]["ready"], ready["status"]["progress"]) == (
                f"{len(nodes)}/{len(nodes)}",
                "100%",
            )
        sent = dict(hub.counters.bytes_sent)
        with pods(lab, *on_each(lab, "warmed", inline_volume({"repoId": "org/warm"}))):
            assert {sum_in(lab, f"warmed-{node.number}") for node in lab.nodes[:2]} == {sum_of(warm)}
        assert dict(hub.counters.bytes_sent) == sent
        assert len(set(driver.images(lab.nodes[0])) - set(before)) == 1, (
            "the first node has what it was told to have, and no more"
        )
    settled(lab, driver)


def test_a_prewarm_that_is_deleted_ends_on_every_node(
    lab: Lab, driver: Driver, hub: Hub, second_node: Node
) -> None:
    hub.repo("org/never-full", {"model.bin": OLD * 16})
    hub.faults.rate = 2 * MIB
    # Of a node that lost its power nobody has closed the connections.
    lost = hub.counters.connections["cdn"]
    try:
        with applied(lab.kubectl, prewarm("slow", "org/never-full")):
            filling = lab.kubectl.wait(
                "cacheprewarm",
                "slow",
                lambda found: [state for state, _ in entries(found).values()] == ["Filling"] * 2,
            )
            assert set(entries(filling)) == {node.name for node in lab.nodes[:2]}
            assert condition(filling, "Progressing") == "True"
            wait_for(lambda: hub.counters.connections["cdn"] > lost, 20, "the fills")
        wait_for(lambda: hub.counters.connections["cdn"] <= lost, 20, "the fills to be stopped")
        wait_for(lambda: lab.kubectl.list("cachepins") == [], 60, "the pin to go with the prewarm")
    finally:
        hub.faults.rate = None
    assert hub.counters.bytes_sent["org/never-full/model.bin"] < 16 * len(OLD)
    settled(lab, driver)


def test_a_volume_that_is_deleted_while_it_is_read_elsewhere_is_read_on_and_leaves_nothing(
    lab: Lab, driver: Driver, hub: Hub, second_node: Node
) -> None:
    """Kubernetes keeps a claim that pods use.

    Who takes its finalizer away has the volume deleted under the reader.
    """
    hub.repo("org/deleted", {"model.bin": OLD, "unread.bin": NEW})
    goes, stays = on_each(lab, "deleted", claim_volume("deleted"))
    with volumes_of(lab, {"repoId": "org/deleted"}), applied(lab.kubectl, claim("deleted", "models"), stays):
        with pods(lab, goes):
            lab.kubectl.wait_running("deleted-2")
            lab.kubectl.delete("pvc", "deleted", "default", "--wait=false")
        empty(driver, lab.nodes[0])
        assert sum_in(lab, "deleted-2") == sum_of(OLD)
        assert lab.kubectl.get("pvc", "deleted")["metadata"]["deletionTimestamp"]
        assert len(lab.kubectl.list("cachevolumes", "")) == 1
        lab.kubectl.run(
            "patch", "pvc", "deleted", "--type=merge", "-p", json.dumps({"metadata": {"finalizers": None}})
        )
        wait_for(
            lambda: lab.kubectl.list("cachevolumes", "") == [] and lab.kubectl.list("pv", "") == [],
            60,
            "the volume to go",
        )
        assert sum_in(lab, "deleted-2") == sum_of(OLD)
        unread = lab.kubectl.exec("deleted-2", ["sha256sum", "/data/unread.bin"]).split()[0]
        assert unread == sum_of(NEW), "what is in no page cache yet"
    settled(lab, driver)
