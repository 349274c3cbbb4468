"""The life of volumes in a cluster: slow fills, pods that go early, the plugin replaced under load, a node
that loses power, limits that change."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time

import pytest

from tests.cluster.installed import NAMESPACE, Driver, lives
from tests.cluster.kubectl import Object
from tests.cluster.lab import Lab
from tests.cluster.pods import applied
from tests.cluster.spaces import wait_for
from tests.cluster.test_volumes import pods, settled, sum_in, volumes_of
from tests.cluster.volumes import DRIVER, claim, claim_volume, inline_volume, reader
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MIB = 1 << 20
MODEL = os.urandom(8 * MIB)
SUM = hashlib.sha256(MODEL).hexdigest()
_DEADLINE = 120.0
"""kubelet's, for one call."""


@pytest.fixture(scope="module", autouse=True)
def models(hub: Hub) -> None:
    """A model to read over and over, and one that takes longer than kubelet waits."""
    hub.repo("org/lively", {"model.bin": MODEL})
    hub.repo("org/slow", {"model.bin": MODEL[::-1]})
    hub.repo("org/abandoned", {"model.bin": MODEL + MODEL[::-1]})


def node_pod_replaced(lab: Lab, driver: Driver) -> None:
    """The node plugin's pod is deleted, and its successor ready."""
    old = driver.node_pod(lab.nodes[0])
    lab.kubectl.delete("pod", old, NAMESPACE)
    wait_for(
        lambda: driver.pod("node", lab.nodes[0].name)["metadata"]["name"] != old, 60, "another node plugin"
    )
    lab.kubectl.wait_running(driver.node_pod(lab.nodes[0]), NAMESPACE)


def test_a_fill_that_takes_longer_than_kubelet_waits_is_gone_on_with(
    lab: Lab, driver: Driver, hub: Hub
) -> None:
    hub.faults.rate = len(MODEL) / (_DEADLINE + 20)
    try:
        with applied(lab.kubectl, reader("patient", inline_volume({"repoId": "org/slow"}))):
            wait_for(lambda: "MiB" in lab.kubectl.events("patient"), 60, "an event with the progress")
            lab.kubectl.wait_running("patient", seconds=300)
            assert sum_in(lab, "patient") == hashlib.sha256(MODEL[::-1]).hexdigest()
    finally:
        hub.faults.rate = None
    logs = lab.kubectl.logs(driver.node_pod(lab.nodes[0]), NAMESPACE)
    assert re.search("method=NodePublishVolume .*code=ABORTED", logs), "kubelet did not have to call again"
    assert hub.counters.bytes_sent["org/slow/model.bin"] < 1.2 * len(MODEL)
    settled(lab, driver)


def test_a_pod_that_is_deleted_in_the_middle_of_its_fill_goes_at_once(
    lab: Lab, driver: Driver, hub: Hub
) -> None:
    hub.faults.rate = 100_000
    try:
        with applied(lab.kubectl, reader("hasty", inline_volume({"repoId": "org/abandoned"}))):
            wait_for(lambda: hub.counters.bytes_sent["org/abandoned/model.bin"], 60, "the fill")
        assert hub.counters.bytes_sent["org/abandoned/model.bin"] < 2 * len(MODEL)
    finally:
        hub.faults.rate = None
    settled(lab, driver)


def test_readers_do_not_notice_that_the_plugin_is_replaced(lab: Lab, driver: Driver) -> None:
    read = [
        "sh",
        "-c",
        "while :; do sha256sum /data/model.bin || echo failed; cat /data/model.bin > /dev/null || echo "
        "failed; done",
    ]
    with volumes_of(lab, {"repoId": "org/lively"}), applied(lab.kubectl, claim("lively", "models")):
        readers = [
            reader("inline-reader", inline_volume({"repoId": "org/lively"}), read),
            reader("claim-reader", claim_volume("lively"), read),
        ]
        with pods(lab, *readers):
            node_pod_replaced(lab, driver)
            time.sleep(2)
            for one in readers:
                lines = lab.kubectl.logs(one["metadata"]["name"]).splitlines()
                assert len(lines) > 10
                assert {line.split()[0] for line in lines[:-1]} == {SUM}
    settled(lab, driver)


def test_a_claim_that_is_deleted_under_a_reader_stays_until_the_reader_has_gone(
    lab: Lab, driver: Driver
) -> None:
    node, read = (
        lab.nodes[0],
        [
            "sh",
            "-c",
            "while :; do dd if=/data/model.bin bs=1M iflag=direct 2>/dev/null | sha256sum || echo failed; "
            "done",
        ],
    )
    with volumes_of(lab, {"repoId": "org/lively"}), applied(lab.kubectl, claim("doomed", "models")):
        with pods(lab, reader("holds", claim_volume("doomed"), read, node.name)):
            volume, mounted = of_claim(lab, "doomed"), driver.mounts(node)
            lab.kubectl.delete("pvc", "doomed", "default", "--wait=false")
            wait_for(
                lambda: "Terminating" in lab.kubectl.run("get", "pvc", "doomed"),
                10,
                "the claim to be on its way out",
            )
            before = len(lab.kubectl.logs("holds").splitlines())
            wait_for(
                lambda: len(lab.kubectl.logs("holds").splitlines()) > before + 10, 60, "the pod to read on"
            )
            assert {line.split()[0] for line in lab.kubectl.logs("holds").splitlines()[:-1]} == {SUM}
            assert driver.mounts(node) == mounted != []
            assert lives(lab.kubectl.get("cachevolume", volume))
            assert not lives(lab.kubectl.get("pvc", "doomed"))
        for kind, name in (("pvc", "doomed"), ("cachevolume", volume)):
            wait_for(lambda kind=kind, name=name: not lab.kubectl.get(kind, name), 60, f"{kind} {name} to go")  # type: ignore[misc]
    settled(lab, driver)
    wait_for(lambda: lab.kubectl.list("cachepins", "") == [], 60, "the pin of the claim to go")


def test_a_node_that_lost_power_has_its_volumes_again_and_keeps_none_of_a_pod_that_went_meanwhile(
    lab: Lab, driver: Driver
) -> None:
    node = lab.nodes[0]
    with volumes_of(lab, {"repoId": "org/lively"}), applied(lab.kubectl, claim("lively", "models")):
        stays, goes = (
            reader("stays", claim_volume("lively")),
            reader("goes", inline_volume({"repoId": "org/lively"})),
        )
        lab.kubectl.apply(stays, goes)
        for name in ("stays", "goes"):
            lab.kubectl.wait_running(name)
        node.stop()
        lab.kubectl.delete("pod", "goes", "default", "--force", "--grace-period=0")
        node.start()
        node.wait_ready(lab.kubectl)
        wait_for(lambda: restarted(lab, "stays"), 180, "the container to be started again")
        assert sum_in(lab, "stays") == SUM
        lab.kubectl.delete("pod", "stays")
    settled(lab, driver)


def restarted(lab: Lab, pod: str) -> bool:
    statuses: list[Object] = lab.kubectl.get("pod", pod)["status"].get("containerStatuses", [])
    return any(one["restartCount"] and one["ready"] for one in statuses)


def test_a_volume_attributes_class_changes_the_limits_of_a_running_pod(lab: Lab, driver: Driver) -> None:
    classes = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "VolumeAttributesClass",
            "metadata": {"name": name},
            "driverName": DRIVER,
            "parameters": {"readIops": iops},
        }
        for name, iops in (("slow", "500"), ("fast", "5000"))
    ]
    with (
        applied(lab.kubectl, *classes),
        volumes_of(lab, {"repoId": "org/lively"}),
        applied(lab.kubectl, claim("tuned", "models", attributes="slow")),
        pods(lab, reader("tuned", claim_volume("tuned"))),
    ):
        assert iops(lab, driver) == {500}
        patch = {"spec": {"volumeAttributesClassName": "fast"}}
        lab.kubectl.run("patch", "pvc", "tuned", "--type=merge", "-p", json.dumps(patch))
        lab.kubectl.wait(
            "cachevolume",
            of_claim(lab, "tuned"),
            lambda one: one["spec"].get("performance", {}).get("readIops") == 5000,
        )
        wait_for(lambda: iops(lab, driver) == {5000}, 60, "the limit to be in force")
        assert sum_in(lab, "tuned") == SUM
    settled(lab, driver)


def of_claim(lab: Lab, name: str) -> str:
    volume = lab.kubectl.get("pv", lab.kubectl.get("pvc", name)["spec"]["volumeName"])
    return str(volume["spec"]["csi"]["volumeHandle"])


def iops(lab: Lab, driver: Driver) -> set[int]:
    """What is in force on the node, by the plugin's own command."""
    said = driver.in_node(
        lab.nodes[0],
        "datacache",
        "top",
        "--output",
        "json",
        "--interval",
        "0.1",
        "--cgroup-root",
        "/host/cgroup",
    )
    return {row["in_force_iops"] for row in json.loads(said) if row["in_force_iops"]}
