"""A real kube-apiserver takes everything in deploy/, and gives each account what its program needs and no
more."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import NAMESPACE, Object, container, kinds, manifests, pod, rendered
from tests.deploy.objects import DRIVER, ROOT
from tests.deploy.test_chart_values import FULL
from tests.origins.hub import Hub

apiserver = pytest.importorskip(
    "tests.apiserver", reason="NOT RUN: this checkout starts no kube-apiserver yet (tests/apiserver.py)"
)

EXAMPLES = sorted((ROOT / "deploy/examples").glob("*.yaml"))
CONTROLLER, NODE = (
    f"system:serviceaccount:{NAMESPACE}:datacache-csi-{name}" for name in ("controller", "node")
)
_SECONDS = 60.0


@pytest.fixture(scope="module")
def cluster(api_server: Any) -> Any:
    """An API server with the driver's namespace, and with what Kubernetes' own controllers would make."""
    api_server.kubectl("apply", "-f", str(ROOT / "deploy/namespace.yaml"))
    for namespace in ("default", NAMESPACE):
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace},
        }
        api_server.kubectl("apply", "-f", "-", stdin=account)
    return api_server


@pytest.fixture(scope="module")
def installed(cluster: Any) -> Iterator[Any]:
    cluster.kubectl("apply", "-f", str(ROOT / "deploy/manifests"))
    yield cluster
    cluster.kubectl("delete", "-f", str(ROOT / "deploy/manifests"))


def tried(cluster: Any, things: list[Object]) -> str:
    """What the server says of objects that it takes but does not keep.

    AssertionError with its words where it refuses one.
    """
    return str(
        cluster.kubectl(
            "apply",
            "--dry-run=server",
            "-f",
            "-",
            stdin={"apiVersion": "v1", "kind": "List", "items": things},
        )
    )


def test_the_server_takes_the_manifests(cluster: Any) -> None:
    assert tried(cluster, manifests()).count("(server dry run)") == len(manifests())


def test_the_server_takes_what_the_chart_makes_of_other_values(cluster: Any) -> None:
    for namespace in FULL["controller"]["secretNamespaces"]:
        cluster.kubectl(
            "apply",
            "-f",
            "-",
            stdin={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        )
    things = [thing for thing in rendered(FULL) if thing["kind"] != "PodMonitor"]
    assert tried(cluster, things).count("(server dry run)") == len(things)


def test_the_server_takes_the_definitions_of_our_objects(cluster: Any) -> None:
    assert "(server dry run)" in cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "-f", str(ROOT / "deploy/crds")
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_server_takes_an_example(cluster: Any, path: Path) -> None:
    said = cluster.kubectl("apply", "--dry-run=server", "-f", str(path))
    assert said.count("(server dry run)") == len(list(yaml.safe_load_all(path.read_text())))


def test_a_node_plugin_with_fewer_privileges_is_refused(cluster: Any) -> None:
    things = kinds(manifests(), "DaemonSet")
    container(pod(things, "DaemonSet"), "datacache-node")["securityContext"]["privileged"] = False
    with pytest.raises(
        AssertionError, match="Bidirectional mount propagation is available only to privileged containers"
    ):
        tried(cluster, things)


def of_template(kind: str, namespace: str) -> Object:
    """A pod as the controllers of Kubernetes would make it of the template."""
    (owner,) = kinds(manifests(), kind)
    account = {"serviceAccountName": "default"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "of-template", "namespace": namespace},
        "spec": owner["spec"]["template"]["spec"] | account,
    }


def test_the_controller_may_run_where_pods_are_restricted_and_the_node_plugin_where_they_may_be_privileged(
    cluster: Any,
) -> None:
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "tight"},
    }
    cluster.kubectl(
        "apply",
        "-f",
        "-",
        stdin={"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tight", "labels": label}},
    )
    cluster.kubectl("apply", "-f", "-", stdin=account)
    tried(cluster, [of_template("Deployment", "tight")])
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        tried(cluster, [of_template("DaemonSet", "tight")])
    tried(cluster, [of_template("DaemonSet", NAMESPACE)])


def may(cluster: Any, user: str, verb: str, resource: str, namespace: str = "default") -> bool:
    """Whether the server would let a user do that."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "groups": ["system:authenticated"],
            "resourceAttributes": _attributes(verb, resource, namespace),
        },
    }
    answer = json.loads(cluster.kubectl("create", "-o", "json", "-f", "-", stdin=review))
    return bool(answer["status"]["allowed"])


def _attributes(verb: str, resource: str, namespace: str) -> dict[str, str]:
    what, _, name = resource.partition("=")
    plural, _, group = what.partition(".")
    return {
        "verb": verb,
        "resource": plural,
        "group": group,
        "namespace": namespace,
        **({"name": name} if name else {}),
    }


def test_no_account_of_the_driver_may_do_what_it_has_no_business_with(installed: Any) -> None:
    assert may(installed, NODE, "watch", "cachevolumes.datacache.csi.io")
    assert may(installed, CONTROLLER, "get", "secrets=hub-token")
    forbidden = [
        (NODE, "get", "secrets=hub-token", "default"),
        (NODE, "patch", "cachevolumes.datacache.csi.io", "default"),
        (NODE, "list", "pods", "default"),
        (NODE, "create", "leases.coordination.k8s.io", NAMESPACE),
        (CONTROLLER, "list", "secrets", NAMESPACE),
        (CONTROLLER, "create", "leases.coordination.k8s.io", "default"),
        (CONTROLLER, "update", "leases.coordination.k8s.io=of-somebody-else", NAMESPACE),
        (CONTROLLER, "create", "pods", NAMESPACE),
        (CONTROLLER, "delete", "persistentvolumeclaims", "default"),
    ]
    assert [what for what in forbidden if may(installed, *what)] == []


class Running:
    """The programs of the controller's pod with the rights of its account and the arguments of the chart,
    and a node that can mount volumes."""

    def __init__(self, cluster: Any, folder: Path, stack: ExitStack) -> None:
        self.cluster, self._folder, self._stack = cluster, folder, stack
        self._spec, self._logs = pod(manifests(), "Deployment"), dict[str, Path]()
        self._kubeconfig = self._account()
        cluster.kubectl(
            "apply", "-f", "-", stdin={"apiVersion": "v1", "kind": "List", "items": list(_capable_node())}
        )
        cluster.kubectl("apply", "-f", "-", stdin=_capable_driver(cluster))

    def start(self, name: str, program: str) -> None:
        """Start the container `name` as a process of this machine."""
        words = [
            word
            for word in container(self._spec, name)["args"]
            if not word.startswith(("--health-address", "--http-endpoint"))
        ]
        words = [
            word.replace("/csi/", f"{self._folder}/")
            .replace("/state", f"{self._folder}/state")
            .replace("$(POD_NAMESPACE)", NAMESPACE)
            for word in words
        ]
        words += [] if name == "datacache-controller" else [f"--kubeconfig={self._kubeconfig}"]
        self._logs[name] = self._folder / f"{name}.log"
        with self._logs[name].open("wb") as log:
            process = subprocess.Popen([program, *words], env=self._environment, stdout=log, stderr=log)
        self._stack.callback(_end, process)

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self._folder),
            "KUBECONFIG": str(self._kubeconfig),
            "HF_ENDPOINT": self.hub.endpoint,
        }

    hub: Hub

    def log(self, name: str) -> str:
        """What a program has written."""
        return self._logs[name].read_text(errors="replace")

    def until(self, what: Callable[[], object]) -> None:
        """Return when `what()` is true; AssertionError with all logs where that does not come."""
        end = time.monotonic() + _SECONDS
        while not what():
            assert time.monotonic() < end, "\n".join(
                f"--- {name}\n{self.log(name)[-3000:]}" for name in self._logs
            )
            time.sleep(0.2)

    def forbidden(self) -> list[str]:
        """What the server has refused a program."""
        return [
            line
            for name in self._logs
            for line in self.log(name).splitlines()
            if "forbidden" in line.lower() or "cannot " in line
        ]

    def _account(self) -> Path:
        token = self.cluster.kubectl("create", "token", "datacache-csi-controller", "-n", NAMESPACE).strip()
        config = json.loads(self.cluster.kubeconfig().read_text())
        config["users"][0]["user"] = {"token": token}
        config["contexts"][0]["context"]["namespace"] = NAMESPACE
        config["clusters"][0]["cluster"]["certificate-authority"] = str(
            self.cluster.folder / "certificates/apiserver.crt"
        )
        path = self._folder / "kubeconfig"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _capable_node() -> Iterator[Object]:
    yield {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "capable", "labels": {f"{DRIVER}/mounts": "true"}},
    }


def _capable_driver(cluster: Any) -> Object:
    node = json.loads(cluster.kubectl("get", "node", "capable", "-o", "json"))
    owner = {"apiVersion": "v1", "kind": "Node", "name": "capable", "uid": node["metadata"]["uid"]}
    drivers = [{"name": DRIVER, "nodeID": "capable", "topologyKeys": [f"{DRIVER}/mounts"]}]
    meta = {"name": "capable", "ownerReferences": [owner]}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": meta,
        "spec": {"drivers": drivers},
    }


@pytest.fixture
def running(installed: Any, tmp_path: Path) -> Iterator[Running]:
    folder = apiserver.programs()
    if missing := [name for name in ("csi-provisioner", "csi-resizer") if not (folder / name).exists()]:
        pytest.skip(
            f"NOT RUN: the sidecars' rights, because {' and '.join(missing)} are not built (make test "
            "builds them, with Go)"
        )
    with ExitStack() as stack:
        started = Running(installed, tmp_path, stack)
        started.hub = stack.enter_context(Hub())
        started.start("datacache-controller", str(Path(sys.executable).with_name("datacache-controller")))
        for name in ("csi-provisioner", "csi-resizer"):
            started.start(name, str(folder / name))
        yield started


_STORAGE, _V1 = {"apiVersion": "storage.k8s.io/v1"}, {"apiVersion": "v1"}
_PROTECTION = "kubernetes.io/pv-protection"


def classes() -> list[Object]:
    """A StorageClass that needs a Secret, that Secret, and two VolumeAttributesClasses."""
    named = {
        f"csi.storage.k8s.io/provisioner-secret-{key}": value
        for key, value in (("name", "token"), ("namespace", "default"))
    }
    parameters = {"repoId": "org/model", **named}
    return [
        {**_V1, "kind": "Secret", "metadata": {"name": "token"}, "stringData": {"token": "t"}},
        {
            **_STORAGE,
            "kind": "StorageClass",
            "metadata": {"name": "rights"},
            "provisioner": DRIVER,
            "parameters": parameters,
        },
        *(
            {
                **_STORAGE,
                "kind": "VolumeAttributesClass",
                "metadata": {"name": name},
                "driverName": DRIVER,
                "parameters": {"readIops": iops},
            }
            for name, iops in (("slow", "500"), ("fast", "800"))
        ),
    ]


class Claim:
    """A claim, with what the controllers of Kubernetes would do to it and to its volume: nobody else plays
    them here."""

    def __init__(self, cluster: Any, name: str, source: str = "") -> None:
        self._kubectl, self._name = cluster.kubectl, name
        spec: Object = {
            "storageClassName": "rights",
            "volumeAttributesClassName": "slow",
            "accessModes": ["ReadOnlyMany"],
        }
        spec["resources"] = {"requests": {"storage": "1Gi"}}
        if source:
            spec["dataSource"] = {"kind": "PersistentVolumeClaim", "name": source}
        asked = {"volume.kubernetes.io/storage-provisioner": DRIVER}
        thing = {
            **_V1,
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "annotations": asked},
            "spec": spec,
        }
        self._kubectl("apply", "-f", "-", stdin=thing)

    def volumes(self) -> list[Object]:
        """The PersistentVolumes made for it."""
        found = json.loads(self._kubectl("get", "pv", "-o", "json"))["items"]
        return [thing for thing in found if thing["spec"]["claimRef"]["name"] == self._name]

    def has(self, wanted: str) -> bool:
        """Whether it is said to have this class of attributes."""
        return bool(
            json.loads(self._kubectl("get", "pvc", self._name, "-o", "json"))["status"].get(
                "currentVolumeAttributesClassName"
            )
            == wanted
        )

    def bind(self) -> None:
        """Bind it to the one volume made for it."""
        (volume,) = self.volumes()
        bound = {
            "phase": "Bound",
            "currentVolumeAttributesClassName": "slow",
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadOnlyMany"],
        }
        self.patch({"spec": {"volumeName": volume["metadata"]["name"]}})
        self.patch({"status": bound}, "--subresource=status")
        self._patch("pv", volume["metadata"]["name"], {"status": {"phase": "Bound"}}, "--subresource=status")

    def release(self) -> None:
        """Delete it, and say so of its volume."""
        (volume,) = self.volumes()
        self.patch({"metadata": {"finalizers": None}})
        self._kubectl("delete", "pvc", self._name)
        self._patch(
            "pv", volume["metadata"]["name"], {"status": {"phase": "Released"}}, "--subresource=status"
        )

    def deleted(self) -> bool:
        """Whether all that had to be done for the deletion of its volume is done; then it is let go."""
        left = [
            thing
            for thing in self.volumes()
            if "deletionTimestamp" not in thing["metadata"]
            or thing["metadata"]["finalizers"] != [_PROTECTION]
        ]
        for thing in [] if left else self.volumes():
            self._patch("pv", thing["metadata"]["name"], {"metadata": {"finalizers": None}})
        return not left

    def patch(self, what: Object, *words: str) -> None:
        """Merge `what` into it."""
        self._patch("pvc", self._name, what, *words)

    def _patch(self, kind: str, name: str, what: Object, *words: str) -> None:
        self._kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(what), *words)


def recorded(cluster: Any) -> set[str]:
    """The volumes that the driver knows."""
    return {
        thing["spec"]["volumeID"]
        for thing in cluster.client().call("GET", "/apis/datacache.csi.io/v1alpha1/cachevolumes")["items"]
    }


def test_the_account_of_the_controller_has_the_rights_that_a_volumes_life_needs(running: Running) -> None:
    """Made with a Secret, cloned, changed, deleted; the real sidecars, with the chart's arguments."""
    running.hub.repo("org/model", {"config.json": b"{}"}, private=True, tokens={"t"})
    running.cluster.kubectl("apply", "-f", "-", stdin={**_V1, "kind": "List", "items": classes()})
    first = Claim(running.cluster, "rights")
    running.until(first.volumes)
    first.bind()
    clone = Claim(running.cluster, "clone", source="rights")
    running.until(clone.volumes)
    clone.bind()
    first.patch({"spec": {"volumeAttributesClassName": "fast"}})
    running.until(lambda: first.has("fast"))
    made = {thing["spec"]["csi"]["volumeHandle"] for claim in (first, clone) for thing in claim.volumes()}
    assert len(made) == 2
    assert made <= recorded(running.cluster)
    for claim in (clone, first):
        claim.release()
        running.until(claim.deleted)
    assert not made & recorded(running.cluster)
    assert running.forbidden() == []
