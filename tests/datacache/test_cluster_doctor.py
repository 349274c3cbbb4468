"""`datacache doctor --cluster` names what is wrong with a cluster: on a real API server, each thing is broken here alone."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from csi import __version__
from datacache import cluster_doctor
from tests.apiserver import CRDS, STRANGER, ApiServer
from tests.origins.onc_rpc import wait_until

DEPLOY = CRDS.parent
DRIVER, NAMESPACE, NODES = "datacache.csi.io", "datacache-csi", ("one", "two")
_DATACACHE = Path(sys.executable).parent / "datacache"
WELL = {
    "API server",
    "CRDs",
    "CSIDriver",
    "namespace",
    "controller",
    "leader",
    "node plugins",
    "registration",
    "mounting",
    "clocks",
    "StorageClasses",
    "PVCs",
    "pods",
    "caches",
}


class Found(NamedTuple):
    check: str
    verdict: str
    what: str
    fix: str


class Examination(NamedTuple):
    status: int
    found: list[Found]

    def only(self, check: str, verdict: str) -> Found:
        """The one finding that is not ok."""
        wrong = [one for one in self.found if one.verdict != "ok"]
        assert [(one.check, one.verdict) for one in wrong] == [(check, verdict)], self.found
        assert wrong[0].fix and self.status == (verdict == "fault")
        return wrong[0]


def now(offset: float = 0.0) -> str:
    return datetime.fromtimestamp(time.time() + offset, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Cluster:
    """A cluster in which the driver of deploy/manifests runs, as far as its objects say."""

    def __init__(self, server: ApiServer) -> None:
        self.server, self.client = server, server.client()
        self.undo: list[Callable[[], object]] = []

    def install(self) -> None:
        self.server.kubectl("apply", "-f", str(DEPLOY / "namespace.yaml"))
        self.server.kubectl("apply", "--server-side", "-f", str(DEPLOY / "manifests"))
        for node in NODES:
            self.put("/api/v1/nodes", {"metadata": {"name": node, "labels": {f"{DRIVER}/plugin": "true", f"{DRIVER}/mounts": "true"}}}, "v1", "Node")
            ready = {
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": now()[:19] + "Z", "lastTransitionTime": now()[:19] + "Z"}]
            }
            self.status(f"/api/v1/nodes/{node}", ready)
            spec = {"drivers": [{"name": DRIVER, "nodeID": node, "topologyKeys": []}]}
            self.put("/apis/storage.k8s.io/v1/csinodes", {"metadata": {"name": node}, "spec": spec}, "storage.k8s.io/v1", "CSINode")
            self.pod(f"node-{node}", "node", node)
        self.pod("controller-1", "controller", NODES[0])
        self.pod("controller-2", "controller", NODES[1])
        self.status(
            self.path("apps/v1", "daemonsets", "datacache-csi-node"),
            {"desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberReady": 2, "numberMisscheduled": 0},
        )
        self.put("/api/v1/namespaces", {"metadata": {"name": "kube-node-lease"}}, "v1", "Namespace", there=True)

    def beat(self) -> None:
        """What has to be fresh."""
        for node in NODES:
            self.lease("kube-node-lease", node, now())
        self.lease(NAMESPACE, f"{DRIVER}-controller", now(), "controller-1")

    def lease(self, namespace: str, name: str, when: str, holder: str = "x") -> None:
        path, spec = (
            f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
            {"holderIdentity": holder, "renewTime": when, "leaseDurationSeconds": 40},
        )
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
        self.client.call("PATCH", f"{path}/{name}", {"fieldManager": "test", "force": "true"}, body, "application/apply-patch+yaml")

    def path(self, group: str, kind: str, name: str) -> str:
        return f"/apis/{group}/namespaces/{NAMESPACE}/{kind}/{name}"

    def put(self, path: str, thing: dict[str, Any], version: str, kind: str, there: bool = False) -> dict[str, Any]:
        try:
            return self.client.call("POST", path, body={"apiVersion": version, "kind": kind, **thing})
        except Exception:
            if not there:
                raise
            return {}

    def status(self, path: str, status: dict[str, Any]) -> None:
        self.client.call("PATCH", f"{path}/status", {}, {"status": status}, "application/merge-patch+json")

    def pod(self, name: str, component: str, node: str, namespace: str = NAMESPACE, **spec: Any) -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": "datacache-csi", "app.kubernetes.io/component": component} if component else {}
        account = {"serviceAccountName": f"datacache-csi-{component}"} if component else {}
        whole = {"nodeName": node, **account, "automountServiceAccountToken": False, "containers": [{"name": "c", "image": "i"}], **spec}
        made = self.put(f"/api/v1/namespaces/{namespace}/pods", {"metadata": {"name": name, "labels": labels}, "spec": whole}, "v1", "Pod")
        if component:
            ready = [{"type": "Ready", "status": "True", "lastTransitionTime": now()[:19] + "Z"}]
            self.status(f"/api/v1/namespaces/{namespace}/pods/{name}", {"phase": "Running", "conditions": ready})
        return made

    def event(self, about: dict[str, Any], reason: str, message: str, namespace: str) -> None:
        meta = about["metadata"]
        involved = {
            "kind": about["kind"],
            "name": meta["name"],
            "uid": meta["uid"],
            **({"namespace": meta["namespace"]} if "namespace" in meta else {}),
        }
        body = {
            "metadata": {"generateName": "e-"},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "involvedObject": involved,
            "lastTimestamp": now()[:19] + "Z",
        }
        made = self.put(f"/api/v1/namespaces/{namespace}/events", body, "v1", "Event")
        self.later("DELETE", f"/api/v1/namespaces/{namespace}/events/{made['metadata']['name']}")

    def later(self, method: str, path: str, body: object = None) -> None:
        """Put something right after the test."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        self.undo.append(lambda: self.client.call(method, path, {}, body, kind))

    def made(self, path: str, thing: dict[str, Any], version: str, kind: str) -> dict[str, Any]:
        """Make something that is gone after the test."""
        found = self.put(path, thing, version, kind)
        self.later("DELETE", f"{path}/{found['metadata']['name']}", {"gracePeriodSeconds": 0})
        return found

    def patch(self, path: str, change: dict[str, Any], back: dict[str, Any]) -> None:
        self.client.call("PATCH", path, {}, change, "application/merge-patch+json")
        self.later("PATCH", path, back)

    def examine(self, *flags: str, user: str = "admin", namespace: str = NAMESPACE) -> Examination:
        self.beat_unless_told()
        environment = {"KUBECONFIG": str(self.server.kubeconfig(user)), "PATH": "/usr/bin:/bin"}
        command = [str(_DATACACHE), "doctor", "--cluster", "--output", "json", "-n", namespace, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.stdout, done.stderr
        return Examination(done.returncode, [Found(**one) for one in json.loads(done.stdout)])

    beating = True

    def beat_unless_told(self) -> None:
        if self.beating:
            self.beat()


@pytest.fixture(scope="module")
def installed(api_server: ApiServer) -> Iterator[Cluster]:
    found = Cluster(api_server)
    found.install()
    yield found
    for node in NODES:
        found.client.call("DELETE", f"/api/v1/nodes/{node}")
        found.client.call("DELETE", f"/apis/storage.k8s.io/v1/csinodes/{node}")
    for pod in ("node-one", "node-two", "controller-1", "controller-2"):
        found.client.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}", body={"gracePeriodSeconds": 0})
    api_server.kubectl("delete", "--wait=false", "-f", str(DEPLOY / "manifests"))


@pytest.fixture
def well(installed: Cluster) -> Iterator[Cluster]:
    """The cluster, put right after the test."""
    installed.beating = True
    yield installed
    while installed.undo:
        installed.undo.pop()()


def test_a_good_cluster_has_nothing_wrong(well: Cluster) -> None:
    done = well.examine()
    assert done.status == 0 and {one.verdict for one in done.found} == {"ok"}, done.found
    assert {one.check for one in done.found} == WELL - {"StorageClasses", "PVCs", "pods"}
    parameters = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
    well.made(
        "/apis/storage.k8s.io/v1/storageclasses",
        {"metadata": {"name": "good"}, "provisioner": DRIVER, "parameters": parameters},
        "storage.k8s.io/v1",
        "StorageClass",
    )
    claim(well, "waits", "good")
    well.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}}, "v1", "ServiceAccount")
    inline_pod(well, "runs")
    done = well.examine()
    assert done.status == 0 and {one.check for one in done.found} == WELL and {one.verdict for one in done.found} == {"ok"}, done.found


def claim(cluster: Cluster, name: str, storage_class: str) -> dict[str, Any]:
    spec = {"storageClassName": storage_class, "accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
    found = cluster.made(
        "/api/v1/namespaces/default/persistentvolumeclaims",
        {"metadata": {"name": name, "finalizers": []}, "spec": spec},
        "v1",
        "PersistentVolumeClaim",
    )
    cluster.later("PATCH", f"/api/v1/namespaces/default/persistentvolumeclaims/{name}", {"metadata": {"finalizers": None}})
    return found


def inline_pod(cluster: Cluster, name: str) -> dict[str, Any]:
    volumes = [{"name": "v", "csi": {"driver": DRIVER, "volumeAttributes": {"repoId": "org/name"}}}]
    found = cluster.pod(name, "", "one", "default", volumes=volumes)
    cluster.later("DELETE", f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})
    return found


def test_people_get_a_table(well: Cluster) -> None:
    well.beat()
    environment = {"KUBECONFIG": str(well.server.kubeconfig()), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(_DATACACHE), "doctor", "--cluster"], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.split()[:4] == ["check", "verdict", "what", "fix"] and "CSIDriver" in done.stdout


def test_a_server_that_does_not_answer_is_the_only_finding(tmp_path: Path) -> None:
    config = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    config.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                "clusters": [cluster],
                "users": [{"name": "c", "user": {}}],
            }
        )
    )
    done = subprocess.run(
        [str(_DATACACHE), "doctor", "--cluster", "-o", "json"], capture_output=True, text=True, env={"KUBECONFIG": str(config)}, timeout=120
    )
    (found,) = json.loads(done.stdout)
    assert done.returncode == 1 and found["check"] == "API server" and "KUBECONFIG" in found["fix"]


@pytest.mark.parametrize(("minor", "verdict"), [("30", "fault"), ("33+", "warning"), ("34", "ok")])
def test_a_cluster_that_is_too_old(minor: str, verdict: str) -> None:
    assert cluster_doctor.api_version({"major": "1", "minor": minor, "gitVersion": f"v1.{minor}.0"}).verdict.value == verdict


def test_crds_that_are_missing_or_old(well: Cluster) -> None:
    name = "cacheprewarms.datacache.csi.io"
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    whole = well.client.call("GET", path)
    del whole["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["caches"]["items"]["properties"]["dataCache"]
    del whole["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["caches"]["items"]["x-kubernetes-validations"]
    well.client.call("PUT", path, body=whole)
    well.undo.append(lambda: well.server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS / "cacheprewarms.yaml")))
    assert "does not know dataCache" in well.examine().only("CRDs", "fault").what
    well.client.call("DELETE", path)
    well.undo.append(lambda: well.server.kubectl("wait", "--for=delete", "--timeout=30s", f"crd/{name}"))
    assert wait_until(lambda: f"{name} is missing" in well.examine().only("CRDs", "fault").what, 30)
    assert "kubectl apply --server-side" in well.examine().only("CRDs", "fault").fix
    well.undo.reverse()
    well.undo.append(lambda: wait_until(well.server._is_ready, 30))
    well.undo.reverse()


def test_no_csi_driver_or_another_one(well: Cluster) -> None:
    done = well.examine("--driver-name", "other.example")
    assert next(one for one in done.found if one.check == "CSIDriver").what == "there is no CSIDriver other.example" and done.status == 1
    well.patch(f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}", {"spec": {"storageCapacity": True}}, {"spec": {"storageCapacity": False}})
    assert "storageCapacity is True" in well.examine().only("CSIDriver", "fault").what


def test_a_namespace_that_is_missing_or_lets_no_privileged_pods_run(well: Cluster) -> None:
    done = well.examine(namespace="elsewhere")
    assert {one.check for one in done.found if one.verdict == "fault"} == {"namespace", "controller", "node plugins"}
    label = "pod-security.kubernetes.io/enforce"
    well.patch(f"/api/v1/namespaces/{NAMESPACE}", {"metadata": {"labels": {label: "baseline"}}}, {"metadata": {"labels": {label: "privileged"}}})
    assert "baseline" in well.examine().only("namespace", "fault").what


def break_pod(cluster: Cluster, name: str, status: dict[str, Any]) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"
    ready = [{"type": "Ready", "status": "True", "lastTransitionTime": now()[:19] + "Z"}]
    cluster.status(path, {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now()[:19] + "Z"}], **status})
    cluster.undo.append(lambda: cluster.status(path, {"phase": "Running", "conditions": ready, "containerStatuses": None}))


def waiting(reason: str, message: str, last: str = "") -> dict[str, Any]:
    state = {
        "name": "c",
        "image": "i",
        "imageID": "",
        "ready": False,
        "restartCount": 3,
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    return {"containerStatuses": [{**state, **({"lastState": {"terminated": {"exitCode": 1, "message": last}}} if last else {})}]}


@pytest.mark.parametrize(("pod", "check"), [("controller-2", "controller"), ("node-two", "node plugins")])
def test_a_pod_that_cannot_be_pulled_or_ends_again_and_again(well: Cluster, pod: str, check: str) -> None:
    break_pod(well, pod, waiting("ImagePullBackOff", "no such image"))
    found = well.examine().only(check, "fault")
    assert f"1 of 2 pods not ready: {pod} on two: ImagePullBackOff: no such image" in found.what and "logs" in found.fix
    break_pod(well, pod, waiting("CrashLoopBackOff", "back-off", "the store is full"))
    assert "CrashLoopBackOff: the store is full" in well.examine().only(check, "fault").what


def test_a_pod_that_no_node_takes(well: Cluster) -> None:
    conditions = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes", "lastTransitionTime": now()[:19] + "Z"}
    ]
    break_pod(well, "controller-1", {"phase": "Pending", "conditions": conditions})
    assert "Unschedulable: 0/2 nodes" in well.examine().only("controller", "fault").what


def test_pods_that_nobody_makes(well: Cluster) -> None:
    path = well.path("apps/v1", "daemonsets", "datacache-csi-node")
    well.status(path, {"desiredNumberScheduled": 3})
    well.undo.append(lambda: well.status(path, {"desiredNumberScheduled": 2}))
    well.event(well.client.call("GET", path) | {"kind": "DaemonSet"}, "FailedCreate", "violates PodSecurity", NAMESPACE)
    assert "2 of 3 pods are there (FailedCreate: violates PodSecurity)" in well.examine().only("node plugins", "fault").what


def test_nobody_leads(well: Cluster) -> None:
    well.beat()
    well.beating = False
    well.lease(NAMESPACE, f"{DRIVER}-controller", now(-300), "controller-1")
    found = well.examine().only("leader", "fault")
    assert "no replica leads; the last one was heard 30" in found.what and "RBAC" in found.fix


def test_a_kubelet_that_has_not_taken_the_driver(well: Cluster) -> None:
    path = "/apis/storage.k8s.io/v1/csinodes/two"
    well.patch(path, {"spec": {"drivers": []}}, {"spec": {"drivers": [{"name": DRIVER, "nodeID": "two", "topologyKeys": []}]}})
    assert "its CSINode does not list the driver" in well.examine().only("registration", "fault").what
    node = {"kind": "Node", "metadata": {"name": "two", "uid": "two"}}
    well.event(node, "RegistrationRefused", "kubelet says no", "default")
    assert "kubelet of two has not taken the driver: kubelet says no" in well.examine().only("registration", "fault").what


def test_a_node_that_can_mount_nothing(well: Cluster) -> None:
    label = f"{DRIVER}/mounts"
    well.patch("/api/v1/nodes/two", {"metadata": {"labels": {label: None}}}, {"metadata": {"labels": {label: "true"}}})
    well.event({"kind": "Node", "metadata": {"name": "two", "uid": "two"}}, "CannotMountVolumes", "no EROFS", "default")
    assert "two can mount no volumes: no EROFS" in well.examine().only("mounting", "warning").what
    well.patch("/api/v1/nodes/one", {"metadata": {"labels": {label: None}}}, {"metadata": {"labels": {label: "true"}}})
    assert "no node can mount volumes" in [one.what for one in well.examine().found if one.verdict == "fault"]


@pytest.mark.parametrize(
    ("seconds", "verdict", "words"), [(120.0, "warning", "ahead of"), (-180.0, "warning", "behind"), (3600.0, "fault", "ahead of")]
)
def test_a_node_whose_clock_is_wrong(well: Cluster, seconds: float, verdict: str, words: str) -> None:
    well.beat()
    well.beating = False
    well.lease("kube-node-lease", "two", now(seconds))
    found = well.examine().only("clocks", verdict)
    assert "the clock of two is" in found.what and words in found.what and "NTP" in found.fix


def test_another_version_is_installed(well: Cluster) -> None:
    path, label = well.path("apps/v1", "deployments", "datacache-csi-controller"), "app.kubernetes.io/version"
    well.patch(path, {"metadata": {"labels": {label: "0.0.9"}}}, {"metadata": {"labels": {label: __version__}}})
    assert f"version 0.0.9 is installed, and this command is {__version__}" in well.examine().only("controller", "warning").what


def storage_class(cluster: Cluster, **parameters: str) -> None:
    whole = {
        "metadata": {"name": "class"},
        "provisioner": DRIVER,
        "parameters": {"repoId": "org/name", "repoSource": "HuggingFace/Model", **parameters},
    }
    cluster.made("/apis/storage.k8s.io/v1/storageclasses", whole, "storage.k8s.io/v1", "StorageClass")


def test_a_storage_class_that_the_driver_does_not_understand(well: Cluster) -> None:
    storage_class(well, revison="main")
    found = well.examine().only("StorageClasses", "fault")
    assert "class: unknown parameter 'revison'; did you mean revision?" in found.what and "anew" in found.fix


def test_a_volume_attributes_class_that_fits_no_volume(well: Cluster) -> None:
    whole = {"metadata": {"name": "fast"}, "driverName": DRIVER, "parameters": {"provisionedIops": "many"}}
    well.made("/apis/storage.k8s.io/v1/volumeattributesclasses", whole, "storage.k8s.io/v1", "VolumeAttributesClass")
    # The server itself protects it by a finalizer.
    well.later("PATCH", "/apis/storage.k8s.io/v1/volumeattributesclasses/fast", {"metadata": {"finalizers": None}})
    assert "VolumeAttributesClass fast: provisionedIops" in well.examine().only("StorageClasses", "fault").what


@pytest.mark.parametrize(
    ("data", "words"),
    [(None, "it is not there"), ({"password": "hush"}, "it has none of the keys"), ({"token": " "}, "its key token is empty")],
)
def test_a_secret_that_is_not_there_or_holds_no_credential(well: Cluster, data: dict[str, str] | None, words: str) -> None:
    storage_class(well, **{"csi.storage.k8s.io/node-stage-secret-name": "hub", "csi.storage.k8s.io/node-stage-secret-namespace": "default"})
    if data is not None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        well.made("/api/v1/namespaces/default/secrets", {"metadata": {"name": "hub"}, "data": encoded}, "v1", "Secret")
    found = well.examine().only("Secrets", "fault")
    assert f"the Secret default/hub: {words}" in found.what and "hush" not in found.what


def test_a_claim_that_waits_with_a_complaint(well: Cluster) -> None:
    storage_class(well)
    made = claim(well, "waits", "class")
    well.event(made | {"kind": "PersistentVolumeClaim"}, "ProvisioningFailed", "the hub does not know org/name", "default")
    found = well.examine().only("PVCs", "fault")
    assert "default/waits is Pending: ProvisioningFailed: the hub does not know org/name" in found.what and "describe pvc waits" in found.fix


def test_a_pod_that_waits_for_a_volume(well: Cluster) -> None:
    well.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}}, "v1", "ServiceAccount")
    made = inline_pod(well, "waits")
    well.event(made | {"kind": "Pod"}, "FailedMount", "the NAS refuses", "default")
    assert "default/waits does not start: FailedMount: the NAS refuses" in well.examine().only("pods", "fault").what


def test_a_prewarm_that_fails(well: Cluster) -> None:
    path = "/apis/datacache.csi.io/v1alpha1/namespaces/default/cacheprewarms"
    well.made(path, {"metadata": {"name": "p"}, "spec": {"caches": [{"claimName": "c"}]}}, "datacache.csi.io/v1alpha1", "CachePrewarm")
    condition = {"type": "Failed", "status": "True", "reason": "NodesFail", "message": "one: no space", "lastTransitionTime": now()[:19] + "Z"}
    well.status(f"{path}/p", {"conditions": [condition]})
    assert "CachePrewarm default/p: one: no space" in well.examine().only("caches", "warning").what


def test_a_data_cache_that_fails(well: Cluster) -> None:
    path = "/apis/eci.aliyun.com/v1alpha1/datacaches"
    spec = {"path": "/a", "dataSource": {"type": "URL", "options": {"repoId": "org/name"}}}
    well.made(path, {"metadata": {"name": "d"}, "spec": spec}, "eci.aliyun.com/v1alpha1", "DataCache")
    well.status(f"{path}/d", {"status": "Failed", "message": "the hub is gone"})
    assert "DataCache d is Failed: the hub is gone" in well.examine().only("caches", "warning").what


def test_an_operator_that_does_not_run(well: Cluster) -> None:
    labels = {"app.kubernetes.io/name": "datacache-csi", "app.kubernetes.io/component": "operator"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    well.made(
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
        {"metadata": {"name": "operator", "labels": labels}, "spec": spec},
        "apps/v1",
        "Deployment",
    )
    assert "there is no pod" in well.examine().only("operator", "fault").what


def test_who_may_read_nothing_is_told_which_rights_are_missing(well: Cluster) -> None:
    done = well.examine(user=STRANGER)
    refused = {one.check: one for one in done.found if one.verdict != "ok"}
    assert (
        WELL - {"API server", "leader", "registration"} <= refused.keys()
        and "operator" in refused
        and {one.verdict for one in refused.values()} == {"warning"}
    )
    assert "storageclasses" in refused["StorageClasses"].what and "right" in refused["StorageClasses"].fix
