"""Nodes of the lab are nodes: pods run on them, are reached, and do not outlive them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster import audit
from tests.cluster.kubectl import Object, condition
from tests.cluster.lab import Lab
from tests.cluster.node import Node
from tests.cluster.pods import applied, pod

pytestmark = pytest.mark.cluster

SLEEP = ["sleep", "3600"]


def write_erofs(image: Path, files: dict[str, str]) -> None:
    with TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        subprocess.run(["mkfs.erofs", image, folder], check=True, capture_output=True)


def status(container: Object) -> Object:
    return dict(container["status"]["containerStatuses"][0]["state"])


def test_the_node_is_ready_and_is_no_other_machine(lab: Lab) -> None:
    node = lab.kubectl.get("node", "node-1")
    assert condition(node, "Ready") == "True"
    assert {"type": "InternalIP", "address": lab.plane.network.node(1)} in node["status"]["addresses"]


def test_a_pod_runs_and_says_what_it_is_asked(lab: Lab) -> None:
    with applied(lab.kubectl, pod("talks", ["sh", "-c", "echo started; exec sleep 3600"])):
        found = lab.kubectl.wait_running("talks")
        assert found["spec"]["nodeName"] == "node-1"
        assert lab.kubectl.logs("talks") == "started\n"
        assert lab.kubectl.exec("talks", ["hostname"]) == "talks\n"
        cgroups = lab.kubectl.exec("talks", ["cat", "/proc/self/cgroup"])
        assert f":blkio:/kubepods/besteffort/pod{found['metadata']['uid']}/" in cgroups


def test_a_pod_that_the_scheduler_cannot_place_says_why(lab: Lab) -> None:
    with applied(lab.kubectl, pod("nowhere", nodeSelector={"no": "such"})):
        found = lab.kubectl.wait("pod", "nowhere", lambda found: condition(found, "PodScheduled") == "False")
        assert "didn't match Pod's node affinity/selector" in json.dumps(found["status"])


def test_a_pod_reaches_this_machine_and_the_api_server(lab: Lab) -> None:
    with applied(lab.kubectl, pod("asks", SLEEP)):
        lab.kubectl.wait_running("asks")
        for address in lab.outside:
            lab.kubectl.exec("asks", ["ping", "-c", "1", address])
        lab.kubectl.exec(
            "asks", ["sh", "-c", "nc -w 10 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null"]
        )


def test_a_container_has_the_seccomp_profile_it_asks_for(lab: Lab) -> None:
    with applied(
        lab.kubectl, pod("confined", SLEEP, securityContext={"seccompProfile": {"type": "RuntimeDefault"}})
    ):
        lab.kubectl.wait_running("confined")
        assert "Seccomp:\t2" in lab.kubectl.exec("confined", ["cat", "/proc/1/status"])


def test_who_asked_what_is_in_the_audit_log(lab: Lab) -> None:
    with applied(lab.kubectl, pod("audited", SLEEP)):
        lab.kubectl.wait_running("audited")
    calls = [
        call for call in audit.calls(lab.plane.audit_log) if (call.resource, call.name) == ("pods", "audited")
    ]
    asked = {(call.user, call.verb, call.subresource) for call in calls}
    assert {
        ("admin", "patch", ""),
        ("system:kube-scheduler", "create", "binding"),
        ("system:node:node-1", "patch", "status"),
    } <= asked


def test_kubelet_tells_what_a_pod_uses(lab: Lab) -> None:
    with applied(lab.kubectl, pod("used", SLEEP)):
        lab.kubectl.wait_running("used")
        told = json.loads(lab.kubectl.run("get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"))
    assert told["node"]["fs"]["capacityBytes"] > 0
    assert "used" in [one["podRef"]["name"] for one in told["pods"]]


def test_what_a_pod_mounts_reaches_its_node_and_the_pods_there_and_no_other_node(
    lab: Lab, second_node: Node
) -> None:
    """As a node plugin does: an EROFS image on a loop device, below kubelet's folder, by a container that
    shares its mounts."""
    place = "/var/lib/kubelet/plugins/test"
    image = lab.nodes[0].root / "var/lib/kubelet/image"
    write_erofs(image, {"read": "by all\n"})
    volumes = [
        {"name": "kubelet", "hostPath": {"path": "/var/lib/kubelet"}},
        {"name": "dev", "hostPath": {"path": "/dev"}},
    ]
    shared = [
        {"name": "kubelet", "mountPath": "/var/lib/kubelet", "mountPropagation": "Bidirectional"},
        {"name": "dev", "mountPath": "/dev"},
    ]
    plugin = pod("mounts", SLEEP, node="node-1", volumes=volumes)
    plugin["spec"]["containers"][0] |= {"securityContext": {"privileged": True}, "volumeMounts": shared}
    reader = pod("reads", SLEEP, node="node-1", volumes=volumes[:1])
    reader["spec"]["containers"][0] |= {
        "volumeMounts": [{"name": "kubelet", "mountPath": "/seen", "mountPropagation": "HostToContainer"}]
    }
    with applied(lab.kubectl, plugin, reader):
        for name in ("mounts", "reads"):
            lab.kubectl.wait_running(name)
        lab.kubectl.exec(
            "mounts",
            ["sh", "-c", f"mkdir -p {place} && mount -t erofs -o ro,loop /var/lib/kubelet/image {place}"],
        )
        assert (lab.nodes[0].root / place[1:] / "read").read_text() == "by all\n"
        assert lab.kubectl.exec("reads", ["cat", "/seen/plugins/test/read"]) == "by all\n"
        assert not (second_node.root / place[1:] / "read").exists()
        assert not Path(place, "read").exists()
        lab.kubectl.delete("pod", "mounts")
        assert lab.kubectl.exec("reads", ["cat", "/seen/plugins/test/read"]) == "by all\n"
        lab.nodes[0].space.run("umount", place)


def test_pods_of_two_nodes_reach_each_other(lab: Lab, second_node: Node) -> None:
    assert condition(lab.kubectl.get("node", second_node.name), "Ready") == "True"
    first, second = (pod(f"on-{node.name}", SLEEP, node=node.name) for node in lab.nodes[:2])
    with applied(lab.kubectl, first, second):
        addresses = [
            lab.kubectl.wait_running(one["metadata"]["name"])["status"]["podIP"] for one in (first, second)
        ]
        lab.kubectl.exec("on-node-1", ["ping", "-c", "1", addresses[1]])
        lab.kubectl.exec("on-node-2", ["ping", "-c", "1", addresses[0]])


def test_a_node_that_was_switched_off_comes_back_with_its_disk_and_its_pods(
    lab: Lab, second_node: Node
) -> None:
    kept = second_node.root / "var/lib/kept"
    kept.write_text("on disk")
    (second_node.root / "run/forgotten").touch()
    with applied(lab.kubectl, pod("returns", SLEEP, node=second_node.name)):
        before = status(lab.kubectl.wait_running("returns"))["running"]["startedAt"]
        second_node.stop()
        lab.kubectl.wait("node", second_node.name, lambda node: condition(node, "Ready") == "Unknown")
        second_node.start()
        second_node.wait_ready(lab.kubectl)
        assert (second_node.root / "var/lib/kept").read_text() == "on disk"
        assert not (second_node.root / "run/forgotten").exists()
        lab.kubectl.wait(
            "pod",
            "returns",
            lambda found: status(found).get("running", {"startedAt": before})["startedAt"] != before,
        )
        lab.kubectl.exec("returns", ["true"])


def test_a_node_without_erofs_has_all_else(lab: Lab) -> None:
    with lab.extra_node(erofs=False) as node, applied(lab.kubectl, pod("lacks", SLEEP, node=node.name)):
        lab.kubectl.wait_running("lacks")
        known = lab.kubectl.exec("lacks", ["cat", "/proc/filesystems"])
        assert "erofs" not in known
        assert "\text4\n" in known
    assert node.name not in [other["metadata"]["name"] for other in lab.kubectl.list("node")]
