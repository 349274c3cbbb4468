"""A cluster in which the driver runs well, on a real API server: what tests of `datacache doctor
--cluster` break, one thing at a time."""

from __future__ import annotations

import base64
import collections
import email.utils
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from csi.cluster.api_server import APPLY_PATCH, JSON, MERGE_PATCH
from csi.errors import NotFound
from tests.apiserver import CRDS, ApiServer
from tests.origins.scripted import Answer, Server

DEPLOY = CRDS.parent
DRIVER, NAMESPACE, NODES = "datacache.csi.io", "datacache-csi", ("one", "two")
DATACACHE = Path(sys.executable).parent / "datacache"
PLUGIN, MOUNTS = f"{DRIVER}/plugin", f"{DRIVER}/mounts"
INSTALLED = ("API server", "clock", "CRDs", "CSIDriver", "namespace")
RUNNING = ("controller", "leader", "node plugins", "registration", "mounting", "clocks")
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
CLAIMS = "/api/v1/namespaces/default/persistentvolumeclaims"
PODS = "/api/v1/namespaces/{}/pods"

Thing = dict[str, Any]


class Found(NamedTuple):
    """A finding, as the command prints it for programs."""

    check: str
    verdict: str
    what: str
    fix: str


class Examination(NamedTuple):
    status: int
    found: list[Found]

    def wrong(self) -> list[tuple[str, str]]:
        """Check and verdict of each finding that is not ok."""
        return [(one.check, one.verdict) for one in self.found if one.verdict != "ok"]

    def only(self, check: str, verdict: str) -> Found:
        """The one finding that is not ok."""
        assert self.wrong() == [(check, verdict)], self.found
        found = next(one for one in self.found if one.verdict != "ok")
        assert found.fix
        assert self.status == (verdict == "fault")
        return found

    def of(self, check: str) -> Found:
        """The one finding of a check, when there is nothing wrong."""
        assert self.wrong() == [], self.found
        assert self.status == 0, self.found
        (found,) = [one for one in self.found if one.check == check]
        return found


def doctor(config: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Examination:
    """What the command finds by a kubeconfig."""
    command = [str(DATACACHE), "doctor", "--cluster", "--output", "json", *flags]
    around = {"KUBECONFIG": str(config), "PATH": "/usr/bin:/bin", **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=around)
    assert done.stdout, done.stderr
    return Examination(done.returncode, [Found(**one) for one in json.loads(done.stdout)])


def kubeconfig(path: Path, server: str, user: Thing | None = None, **cluster: str) -> Path:
    """A kubeconfig file with one context, "c"."""
    parts = {
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "c", "user": user or {}}],
    }
    path.write_text(json.dumps({"current-context": "c", **parts}))
    return path


def now(offset: float = 0.0) -> str:
    """A time of Kubernetes with microseconds."""
    return datetime.fromtimestamp(time.time() + offset, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def second(offset: float = 0.0) -> str:
    """A time of Kubernetes in whole seconds."""
    return f"{now(offset)[:19]}Z"


def condition(kind: str, status: str = "True", reason: str = "Said", message: str = "") -> Thing:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": second(),
    }


def container(name: str, **said: Any) -> Thing:
    """The status of a pod's container."""
    return {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 3, **said}


class Cluster:
    """The API server with the objects of deploy/manifests, two nodes and the pods that the two owners
    would have made."""

    def __init__(self, server: ApiServer) -> None:
        self.server, self.client = server, server.client()
        self.undo: list[Callable[[], object]] = []
        self.beating = True

    def install(self) -> None:
        self.server.kubectl("apply", "-f", str(DEPLOY / "namespace.yaml"))
        self.server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEPLOY / "manifests"))
        for node in NODES:
            self.put(
                "/api/v1/nodes",
                {"metadata": {"name": node, "labels": {PLUGIN: "true", MOUNTS: "true"}}},
                "v1",
                "Node",
            )
            self.status(
                f"/api/v1/nodes/{node}",
                {"conditions": [condition("Ready") | {"lastHeartbeatTime": second()}]},
            )
            spec = {"drivers": [{"name": DRIVER, "nodeID": node, "topologyKeys": []}]}
            self.put(
                "/apis/storage.k8s.io/v1/csinodes",
                {"metadata": {"name": node}, "spec": spec},
                "storage.k8s.io/v1",
                "CSINode",
            )
            self.plugin_pod(f"node-{node}", "node", node)
        for number, node in enumerate(NODES, 1):
            self.plugin_pod(f"controller-{number}", "controller", node)
        self.status(
            self.daemon_set,
            {
                "desiredNumberScheduled": 2,
                "currentNumberScheduled": 2,
                "numberReady": 2,
                "numberMisscheduled": 0,
            },
        )
        for path, name, kind in (
            ("/api/v1/namespaces", "kube-node-lease", "Namespace"),
            (_ACCOUNTS, "default", "ServiceAccount"),
        ):
            self.apply(f"{path}/{name}", {"metadata": {"name": name}}, "v1", kind)

    def remove(self) -> None:
        for node in NODES:
            self.client.call("DELETE", f"/api/v1/nodes/{node}")
            self.client.call("DELETE", f"/apis/storage.k8s.io/v1/csinodes/{node}")
            self.client.call(
                "DELETE", f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}"
            )
        for pod in ("node-one", "node-two", "controller-1", "controller-2"):
            self.client.call("DELETE", f"{PODS.format(NAMESPACE)}/{pod}", body={"gracePeriodSeconds": 0})
        self.server.kubectl("delete", "--wait=false", "-f", str(DEPLOY / "manifests"))

    @property
    def deployment(self) -> str:
        return f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/datacache-csi-controller"

    @property
    def daemon_set(self) -> str:
        return f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/datacache-csi-node"

    def get(self, path: str) -> Thing:
        return self.client.call("GET", path)

    def put(self, path: str, thing: Thing, version: str, kind: str) -> Thing:
        return self.client.call("POST", path, body={"apiVersion": version, "kind": kind, **thing})

    def apply(self, path: str, thing: Thing, version: str, kind: str) -> Thing:
        return self.client.call(
            "PATCH",
            path,
            {"fieldManager": "test", "force": "true"},
            {"apiVersion": version, "kind": kind, **thing},
            APPLY_PATCH,
        )

    def status(self, path: str, status: Thing) -> None:
        self.client.call("PATCH", f"{path}/status", {}, {"status": status}, MERGE_PATCH)

    # What is put right after the test.

    def later(self, method: str, path: str, body: object = None) -> None:
        """A call at the end of the test."""
        self.undo.append(
            lambda: self.client.call(method, path, {}, body, MERGE_PATCH if method == "PATCH" else JSON)
        )

    def made(self, path: str, thing: Thing, version: str, kind: str) -> Thing:
        """An object that is gone after the test, finalizers or not."""
        found = self.put(path, thing, version, kind)
        place = f"{path}/{found['metadata']['name']}"

        def gone() -> None:
            with suppress(NotFound):
                self.client.call("PATCH", place, {}, {"metadata": {"finalizers": None}}, MERGE_PATCH)
                self.client.call("DELETE", place, body={"gracePeriodSeconds": 0})
                # What a test has deleted meanwhile, or what the server keeps for a finalizer that it put
                # back.
                self.client.call("PATCH", place, {}, {"metadata": {"finalizers": None}}, MERGE_PATCH)

        self.undo.append(gone)
        return found

    def patched(self, path: str, change: Thing, back: Thing) -> None:
        self.client.call("PATCH", path, {}, change, MERGE_PATCH)
        self.later("PATCH", path, back)

    def status_of_test(self, path: str, status: Thing, back: Thing) -> None:
        self.status(path, status)
        self.undo.append(lambda: self.status(path, back))

    def pod_says(self, name: str, status: Thing) -> None:
        """The status of a plugin's pod, which is ready again after the test."""
        back = {"phase": "Running", "conditions": [condition("Ready")], "containerStatuses": None}
        self.status_of_test(
            f"{PODS.format(NAMESPACE)}/{name}", {"conditions": [condition("Ready", "False")], **status}, back
        )

    def event(self, about: Thing, kind: str, reason: str, message: str, age: float = 0.0) -> None:
        """A Warning about an object of the test."""
        meta = about["metadata"]
        namespace = meta.get("namespace", "default")
        involved = {
            "kind": kind,
            "name": meta["name"],
            "uid": meta["uid"],
            **({"namespace": namespace} if "namespace" in meta else {}),
        }
        said = {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": second(-age)}
        body = {"metadata": {"generateName": "e-"}, **said, "involvedObject": involved}
        self.made(f"/api/v1/namespaces/{namespace}/events", body, "v1", "Event")

    def storage_class(self, name: str = "class", **parameters: str) -> None:
        whole = {"repoId": "org/name", "repoSource": "HuggingFace/Model", **parameters}
        thing = {
            "metadata": {"name": name},
            "provisioner": DRIVER,
            "parameters": {key: value for key, value in whole.items() if value},
        }
        self.made(CLASSES, thing, "storage.k8s.io/v1", "StorageClass")

    def secret(self, name: str, **data: str) -> None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        self.made(
            "/api/v1/namespaces/default/secrets",
            {"metadata": {"name": name}, "data": encoded},
            "v1",
            "Secret",
        )

    def claim(self, name: str, storage_class: str = "class") -> Thing:
        spec = {
            "storageClassName": storage_class,
            "accessModes": ["ReadOnlyMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        }
        return self.made(CLAIMS, {"metadata": {"name": name}, "spec": spec}, "v1", "PersistentVolumeClaim")

    def pod(self, name: str, volume: Thing) -> Thing:
        """A pod of a user's, with a volume "v"."""
        spec = {
            "nodeName": "one",
            "automountServiceAccountToken": False,
            "containers": [{"name": "c", "image": "i"}],
        }
        whole = {"metadata": {"name": name}, "spec": {**spec, "volumes": [{"name": "v", **volume}]}}
        return self.made(PODS.format("default"), whole, "v1", "Pod")

    def plugin_pod(self, name: str, component: str, node: str) -> None:
        labels = {"app.kubernetes.io/name": "datacache-csi", "app.kubernetes.io/component": component}
        main = {"name": f"datacache-{component}", "image": "i"}
        spec = {
            "nodeName": node,
            "serviceAccountName": f"datacache-csi-{component}",
            "automountServiceAccountToken": False,
            "containers": [main],
        }
        self.put(
            PODS.format(NAMESPACE), {"metadata": {"name": name, "labels": labels}, "spec": spec}, "v1", "Pod"
        )
        self.status(
            f"{PODS.format(NAMESPACE)}/{name}", {"phase": "Running", "conditions": [condition("Ready")]}
        )

    # What has to be fresh.

    def beat(self) -> None:
        for node in NODES:
            self.lease("kube-node-lease", node, now())
        self.lease(NAMESPACE, f"{DRIVER}-controller", now(), "controller-1")

    def beat_no_more(self) -> None:
        """From now on a lease is as the test leaves it."""
        self.beat()
        self.beating = False

    def lease(self, namespace: str, name: str, when: str, holder: str = "x") -> None:
        spec = {"holderIdentity": holder, "renewTime": when, "leaseDurationSeconds": 40}
        thing = {"metadata": {"name": name, "namespace": namespace}, "spec": spec}
        self.apply(
            f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}",
            thing,
            "coordination.k8s.io/v1",
            "Lease",
        )

    # Looking.

    def examine(self, *flags: str, user: str = "admin") -> Examination:
        return self.examine_by(self.server.kubeconfig(user), *flags)

    def examine_by(self, config: Path, *flags: str) -> Examination:
        if self.beating:
            self.beat()
        return doctor(config, *flags)

    @contextmanager
    def seen(self, change: Mapping[str, Callable[[Thing], object]], ahead: float = 0.0) -> Iterator[Path]:
        """A kubeconfig by which the server's objects are seen as `change` makes them, by path, and its clock
        `ahead` by seconds.

        For what the server itself would not store, or be. What returns an int is the status of an answer.
        """

        def passed_on(answer: Answer) -> None:
            got = self.client._send_authorized("GET", answer.path, None, {"Accept": JSON}, 10.0)
            thing, status = json.loads(got.data), got.status
            if alter := change.get(answer.path.partition("?")[0]):
                told = alter(thing)
                status = told if isinstance(told, int) else status
            if ahead:
                answer.date_time_string = lambda timestamp=None: email.utils.formatdate(
                    time.time() + ahead, usegmt=True
                )  # type: ignore[method-assign]
            answer.say(status, json.dumps(thing).encode(), Content_Type="application/json")

        with Server() as forwarder:
            forwarder.behave = collections.defaultdict(lambda: passed_on)
            yield kubeconfig(self.server.folder / "seen.kubeconfig", forwarder.url)
            forwarder.shutdown()


_ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
