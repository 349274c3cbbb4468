"""`datacache doctor --cluster` names what is wrong with what is installed and runs: on a real API server,
each thing is broken here alone."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi import __version__
from tests.apiserver import CRDS
from tests.datacache.cluster.well_cluster import (
    CLASSES,
    DATACACHE,
    DRIVER,
    INSTALLED,
    MOUNTS,
    NAMESPACE,
    PLUGIN,
    RUNNING,
    Cluster,
    Thing,
    condition,
    container,
    doctor,
    kubeconfig,
    now,
    second,
)
from tests.origins.onc_rpc import wait_until

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PREWARMS = "cacheprewarms.datacache.csi.io"
NODE_TWO: Thing = {"metadata": {"name": "two", "uid": "two"}}


def test_a_good_cluster_has_nothing_wrong(well: Cluster) -> None:
    done = well.examine()
    assert done.status == 0
    assert done.wrong() == []
    assert not [one.fix for one in done.found if one.fix]
    assert [one.check for one in done.found] == [*INSTALLED, *RUNNING, "caches"]
    assert all(one.what for one in done.found)


def test_people_get_a_table(well: Cluster) -> None:
    well.beat()
    command = [str(DATACACHE), "doctor", "--cluster", "--kubeconfig", str(well.server.kubeconfig())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PATH": "/usr/bin:/bin"})
    assert done.stdout.split()[:4] == ["check", "verdict", "what", "fix"]
    assert all(check in done.stdout for check in (*INSTALLED, *RUNNING))


# The API server and its clock.


def test_a_server_that_does_not_answer_is_the_only_finding(tmp_path: Path) -> None:
    done = doctor(kubeconfig(tmp_path / "config", "https://127.0.0.1:1"))
    (found,) = done.found
    assert done.status == 1
    assert found[:2] == ("API server", "fault")
    assert "Connection refused" in found.what
    assert "KUBECONFIG" in found.fix


def test_who_is_not_known_to_the_server_is_told_so_alone(well: Cluster, tmp_path: Path) -> None:
    ca = str(well.server.folder / "certificates/apiserver.crt")
    done = doctor(
        kubeconfig(tmp_path / "config", well.server.url, {"token": "hush"}, **{"certificate-authority": ca})
    )
    (found,) = done.found
    assert done.status == 1
    assert found[:2] == ("API server", "fault")
    assert "Unauthorized" in found.what
    assert "whoami" in found.fix
    assert "hush" not in str(found)


def test_a_kubeconfig_that_cannot_be_used_is_the_only_finding(well: Cluster) -> None:
    done = well.examine("--context", "elsewhere")
    (found,) = done.found
    assert done.status == 1
    assert found[:2] == ("kubeconfig", "fault")
    assert "has no context 'elsewhere'" in found.what
    assert found.fix


@pytest.mark.parametrize(
    ("minor", "verdict", "words"),
    [("30", "fault", "1.31 or newer"), ("33+", "warning", "VolumeAttributesClasses")],
)
def test_a_cluster_that_is_too_old(well: Cluster, minor: str, verdict: str, words: str) -> None:
    with well.seen({"/version": lambda found: found.update(minor=minor, gitVersion="v1.old")}) as config:
        found = well.examine_by(config).only("API server", verdict)
    assert "it is v1.old" in found.what
    assert words in found.what
    assert "upgrade" in found.fix


@pytest.mark.parametrize(("ahead", "words"), [(90.0, "behind"), (-3600.0, "ahead of")])
def test_a_clock_of_this_machine_that_is_not_the_servers(well: Cluster, ahead: float, words: str) -> None:
    well.beat_no_more()
    for node in ("one", "two"):
        well.lease("kube-node-lease", node, now(ahead))
    well.lease(NAMESPACE, f"{DRIVER}-controller", now(ahead), "controller-1")
    with well.seen({}, ahead) as config:
        found = well.examine_by(config).only("clock", "warning")
    assert f"s {words} the API server's" in found.what
    assert "NTP" in found.fix


def test_one_thing_that_cannot_be_read_hides_no_other(well: Cluster) -> None:
    broken = {f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets": lambda _: 503}
    with well.seen(broken) as config:
        done = well.examine_by(config)
    assert "HTTP 503" in done.only("node plugins", "fault").what
    assert {one.check for one in done.found} == {*INSTALLED, *RUNNING, "caches"}


# What is installed.


def test_a_crd_of_an_older_version(well: Cluster) -> None:
    whole = well.get(f"{CRD}/{PREWARMS}")
    items = whole["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
        "caches"
    ]["items"]
    del items["properties"]["claimName"], items["x-kubernetes-validations"]
    well.client.call("PUT", f"{CRD}/{PREWARMS}", body=whole)
    well.undo.append(
        lambda: well.server.kubectl(
            "apply", "--server-side", "--force-conflicts", "-f", str(CRDS / "cacheprewarms.yaml")
        )
    )
    found = well.examine().only("CRDs", "fault")
    assert f"{PREWARMS} is older than this driver: it does not know spec.caches[].claimName" in found.what
    assert "kubectl apply --server-side" in found.fix


def test_a_crd_that_is_missing(well: Cluster) -> None:
    well.undo.append(lambda: wait_until(well.server._is_ready, 30))
    well.undo.append(
        lambda: well.server.kubectl("apply", "--server-side", "-f", str(CRDS / "cacheprewarms.yaml"))
    )
    well.client.call("DELETE", f"{CRD}/{PREWARMS}")
    well.server.kubectl("wait", "--for=delete", "--timeout=30s", f"crd/{PREWARMS}")
    assert f"{PREWARMS} is missing" in well.examine().only("CRDs", "fault").what


def _crd_is(alter: Callable[[Thing], object], found: Thing) -> None:
    alter(next(thing for thing in found["items"] if thing["metadata"]["name"] == PREWARMS))


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (
            lambda crd: crd["status"].update(conditions=[condition("Established", "False")]),
            "is not established",
        ),
        (lambda crd: crd["spec"]["versions"][0].update(served=False), "does not serve v1alpha1"),
        (
            lambda crd: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].update(properties={}),
            "apiVersion, kind, metadata and ",
        ),
    ],
)
def test_a_crd_that_the_server_cannot_use(
    well: Cluster, alter: Callable[[Thing], object], words: str
) -> None:
    with well.seen({CRD: functools.partial(_crd_is, alter)}) as config:
        assert words in well.examine_by(config).only("CRDs", "fault").what


def test_a_crd_of_a_newer_version_is_good(well: Cluster) -> None:
    def newer(crd: Thing) -> None:
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["more"] = {"type": "string"}

    with well.seen({CRD: functools.partial(_crd_is, newer)}) as config:
        assert __version__ in well.examine_by(config).of("CRDs").what


def test_no_csi_driver_of_that_name(well: Cluster) -> None:
    done = well.examine("--driver-name", "other.example")
    assert (
        next(one for one in done.found if one.check == "CSIDriver").what
        == "there is no CSIDriver other.example"
    )
    assert done.status == 1


def test_a_csi_driver_that_somebody_has_changed(well: Cluster) -> None:
    well.patched(
        f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}",
        {"spec": {"storageCapacity": True}},
        {"spec": {"storageCapacity": False}},
    )
    found = well.examine().only("CSIDriver", "fault")
    assert "storageCapacity is true, it must be false" in found.what
    assert "csidriver.yaml" in found.fix


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"attachRequired": True}, "attachRequired is true, it must be false"),
        ({"podInfoOnMount": False}, "podInfoOnMount is false, it must be true"),
        ({"fsGroupPolicy": "File"}, "fsGroupPolicy is File, it must be None"),
        ({"volumeLifecycleModes": ["Persistent"]}, "volumeLifecycleModes lacks Ephemeral"),
    ],
)
def test_a_csi_driver_of_another_kind(well: Cluster, spec: Thing, words: str) -> None:
    with well.seen(
        {f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}": lambda found: found["spec"].update(spec)}
    ) as config:
        assert words in well.examine_by(config).only("CSIDriver", "fault").what


def test_a_namespace_in_which_nothing_is_installed(well: Cluster) -> None:
    done = well.examine("--namespace", "elsewhere")
    assert done.wrong() == [
        (check, "fault") for check in ("namespace", "controller", "leader", "node plugins")
    ]
    assert done.status == 1
    assert "--namespace" in next(one.fix for one in done.found if one.check == "namespace")


def test_a_namespace_that_lets_no_privileged_pods_run(well: Cluster) -> None:
    label = "pod-security.kubernetes.io/enforce"
    well.patched(
        f"/api/v1/namespaces/{NAMESPACE}",
        {"metadata": {"labels": {label: "baseline"}}},
        {"metadata": {"labels": {label: "privileged"}}},
    )
    found = well.examine().only("namespace", "fault")
    assert "enforces Pod Security baseline" in found.what
    assert f"{label}=privileged" in found.fix


# What runs.


def waiting(why: str, words: str, **last: Any) -> Thing:
    ended = {"lastState": {"terminated": {"exitCode": 1, "reason": "Error", **last}}} if last else {}
    return {
        "containerStatuses": [container("c", state={"waiting": {"reason": why, "message": words}}, **ended)]
    }


BROKEN = {
    "an image that is not had": (
        waiting("ImagePullBackOff", "no such image"),
        "c: ImagePullBackOff: no such image",
    ),
    "a program that ends": (
        waiting("CrashLoopBackOff", "back-off", message="the store is full"),
        "c: CrashLoopBackOff: exit status 1: the store is full",
    ),
    "no memory": (
        waiting("CrashLoopBackOff", "back-off", exitCode=137, reason="OOMKilled"),
        "c: CrashLoopBackOff: OOMKilled, exit status 137",
    ),
    "no node": (
        {
            "phase": "Pending",
            "conditions": [condition("PodScheduled", "False", "Unschedulable", "0/2 nodes")],
        },
        "Unschedulable: 0/2 nodes",
    ),
    "nothing said": ({"phase": "Running"}, "its phase is Running, and it is not ready"),
}


@pytest.mark.parametrize(("pod", "check"), [("controller-2", "controller"), ("node-two", "node plugins")])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_pod_that_is_not_ready_says_why(well: Cluster, pod: str, check: str, broken: str) -> None:
    status, words = BROKEN[broken]
    well.pod_says(pod, status)
    found = well.examine().only(check, "fault")
    assert f"1 of 2 pods not ready: {pod} on two: {words}" in found.what
    assert f"kubectl -n {NAMESPACE} logs" in found.fix


def test_a_pod_that_fails_its_probe_or_waits_for_a_folder_says_so_by_its_event(well: Cluster) -> None:
    creating = container("c", state={"waiting": {"reason": "ContainerCreating"}})
    well.pod_says("node-two", {"phase": "Pending", "containerStatuses": [creating]})
    pod = well.get(f"/api/v1/namespaces/{NAMESPACE}/pods/node-two")
    well.event(pod, "Pod", "Unhealthy", "long ago", age=600)
    well.event(pod, "Pod", "FailedMount", "hostPath type check failed: /var/lib/kubelet is not a directory")
    assert (
        "node-two on two: FailedMount: hostPath type check failed"
        in well.examine().only("node plugins", "fault").what
    )


@pytest.mark.parametrize(("pod", "check"), [("controller-2", "controller"), ("node-two", "node plugins")])
def test_a_pod_that_has_ended_lately_and_runs_again(well: Cluster, pod: str, check: str) -> None:
    def status(age: float) -> Thing:
        ended = {
            "exitCode": 137,
            "reason": "OOMKilled",
            "startedAt": second(-age - 60),
            "finishedAt": second(-age),
        }
        again = container(
            "c", ready=True, state={"running": {"startedAt": second(-age)}}, lastState={"terminated": ended}
        )
        return {"phase": "Running", "conditions": [condition("Ready")], "containerStatuses": [again]}

    well.pod_says(pod, status(600))
    found = well.examine().only(check, "warning")
    assert f"{pod} on two: c has restarted 3 times; it ended with OOMKilled, exit status 137" in found.what
    assert "--previous" in found.fix
    well.pod_says(pod, status(7200))
    assert well.examine().wrong() == []


def test_pods_of_the_controller_that_nobody_makes(well: Cluster) -> None:
    well.patched(well.deployment, {"spec": {"replicas": 3}}, {"spec": {"replicas": 2}})
    failure = condition("ReplicaFailure", "True", "FailedCreate", "exceeded quota")
    well.status_of_test(well.deployment, {"conditions": [failure]}, {"conditions": None})
    assert "2 of 3 pods exist: exceeded quota" in well.examine().only("controller", "fault").what


def test_node_plugins_that_nobody_makes(well: Cluster) -> None:
    well.status_of_test(well.daemon_set, {"desiredNumberScheduled": 3}, {"desiredNumberScheduled": 2})
    assert "2 of 3 pods exist: no Event says why" in well.examine().only("node plugins", "fault").what
    well.event(well.get(well.daemon_set), "DaemonSet", "FailedCreate", "violates PodSecurity")
    assert "2 of 3 pods exist: violates PodSecurity" in well.examine().only("node plugins", "fault").what


def test_nobody_leads(well: Cluster) -> None:
    well.beat_no_more()
    # Answers tell the server's time in whole seconds.
    well.lease(NAMESPACE, f"{DRIVER}-controller", now(-305), "controller-1")
    found = well.examine().only("leader", "fault")
    assert "no replica leads; the last one renewed the lease 30" in found.what
    assert "RBAC" in found.fix
    well.client.call(
        "DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{DRIVER}-controller"
    )
    assert well.examine().only("leader", "fault").what == "no replica leads"


def test_a_leader_that_has_just_let_go_is_no_fault_and_one_that_nobody_followed_is(well: Cluster) -> None:
    well.beat_no_more()
    well.lease(NAMESPACE, f"{DRIVER}-controller", now(-7), "")
    assert (
        "no replica leads at the moment; the last one released the lease "
        in well.examine().only("leader", "warning").what
    )
    well.lease(NAMESPACE, f"{DRIVER}-controller", now(-305), "")
    assert "the last one renewed the lease 30" in well.examine().only("leader", "fault").what


def test_a_kubelet_that_has_not_taken_the_driver(well: Cluster) -> None:
    taken = {"spec": {"drivers": [{"name": DRIVER, "nodeID": "two", "topologyKeys": []}]}}
    well.patched("/apis/storage.k8s.io/v1/csinodes/two", {"spec": {"drivers": []}}, taken)
    assert "its CSINode does not list the driver" in well.examine().only("registration", "fault").what
    well.event(NODE_TWO, "Node", "RegistrationRefused", "kubelet said yes before", age=600)
    well.event(NODE_TWO, "Node", "RegistrationRefused", "kubelet says no")
    found = well.examine().only("registration", "fault")
    assert "kubelet of two has not registered the driver: kubelet says no" in found.what
    assert "kubeletDir" in found.fix


def test_nodes_that_can_mount_nothing(well: Cluster) -> None:
    unable, able = {"metadata": {"labels": {MOUNTS: None}}}, {"metadata": {"labels": {MOUNTS: "true"}}}
    well.patched("/api/v1/nodes/two", unable, able)
    assert "the log of its plugin says why" in well.examine().only("mounting", "warning").what
    well.event(NODE_TWO, "Node", "CannotMountVolumes", "no EROFS")
    assert "two can mount no volumes: no EROFS" in well.examine().only("mounting", "warning").what
    well.patched("/api/v1/nodes/one", unable, able)
    done = well.examine()
    assert done.wrong() == [("mounting", "warning")] * 2 + [("mounting", "fault")]
    assert done.status == 1
    assert "no node can mount volumes" in [one.what for one in done.found]


def test_a_node_without_the_plugin_is_nobody_to_complain_of(well: Cluster) -> None:
    labels = {MOUNTS: None, PLUGIN: None}
    well.patched(
        "/api/v1/nodes/two",
        {"metadata": {"labels": labels}},
        {"metadata": {"labels": dict.fromkeys(labels, "true")}},
    )
    assert well.examine().of("mounting").what == "1 node can mount volumes"


@pytest.mark.parametrize(
    ("seconds", "verdict", "words"),
    [(120.0, "warning", "ahead of"), (-180.0, "warning", "behind"), (3600.0, "fault", "ahead of")],
)
def test_a_node_whose_clock_is_wrong(well: Cluster, seconds: float, verdict: str, words: str) -> None:
    well.beat_no_more()
    well.lease("kube-node-lease", "two", now(seconds))
    found = well.examine().only("clocks", verdict)
    assert "the clock of two is" in found.what
    assert words in found.what
    assert "NTP" in found.fix


def test_another_version_is_installed(well: Cluster) -> None:
    def runs(image: str) -> Thing:
        return {
            "spec": {"template": {"spec": {"containers": [{"name": "datacache-controller", "image": image}]}}}
        }

    image = well.get(well.deployment)["spec"]["template"]["spec"]["containers"][0]["image"]
    for tag, label, wrong in (
        ("0.0.9", __version__, True),
        ("mine", "0.0.9", True),
        (f"v{__version__}@sha256:{'0' * 64}", "0.0.9", False),
    ):
        change = {"op": "replace", "path": "/spec/template/spec/containers/0/image"}
        named = {"op": "replace", "path": "/metadata/labels/app.kubernetes.io~1version"}

        def patch(image: str, label: str, change: Thing = change, named: Thing = named) -> None:
            body = [change | {"value": image}, named | {"value": label}]
            well.client.call("PATCH", well.deployment, {}, body, "application/json-patch+json")

        patch(f"localhost:5000/datacache-csi:{tag}", label)
        well.undo.append(lambda patch=patch: patch(image, __version__))
        done = well.examine()
        words = f"version 0.0.9 is installed, and this command is {__version__}"
        assert done.only("controller", "warning").what == words if wrong else done.wrong() == []


def test_pods_of_another_version_still_run(well: Cluster) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"

    def older(found: Thing) -> None:
        pods = [pod for pod in found["items"] if pod["metadata"]["name"] == "node-two"]
        for pod in pods:
            pod["spec"]["containers"][0]["image"] = "registry.example.com/datacache-csi:0.0.9"

    with well.seen({path: older}) as config:
        assert "version 0.0.9 runs" in well.examine_by(config).only("node plugins", "warning").what


def test_flags_of_a_cluster_are_refused_for_a_node(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(DATACACHE), "doctor", str(tmp_path), "--context", "c"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "need --cluster" in done.stderr


def test_an_operator_that_does_not_run(well: Cluster) -> None:
    labels = {"app.kubernetes.io/name": "datacache-csi", "app.kubernetes.io/component": "operator"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    whole = {
        "metadata": {"name": "operator", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    well.made(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", whole, "apps/v1", "Deployment")
    assert "it has no pod" in well.examine().only("operator", "fault").what


def test_the_classes_of_another_driver_are_nobody_to_complain_of(well: Cluster) -> None:
    thing = {"metadata": {"name": "other"}, "provisioner": "other.example", "parameters": {"what": "ever"}}
    well.made(CLASSES, thing, "storage.k8s.io/v1", "StorageClass")
    assert well.examine().wrong() == []
