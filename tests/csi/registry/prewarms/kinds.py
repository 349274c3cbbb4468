"""Both kinds of what a node is told to prewarm: the objects of a cluster, and the fake that other tests
use."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from csi.cluster.outbox import Outbox
from csi.errors import ClusterUnavailable, FailedPrecondition
from csi.registry.custom_resource import GROUP, VERSION
from csi.registry.prewarms.kubernetes import KubernetesNodePrewarms
from csi.registry.prewarms.prewarms import (
    NodePrewarms,
    NodePrewarmState,
    PrewarmedCache,
    PrewarmRequest,
    PrewarmState,
)
from csi.registry.prewarms.status import patch_with_node
from csi.registry.volumes.kubernetes import KubernetesVolumeRegistry
from csi.registry.volumes.record import VolumeRecord
from tests.apiserver import ApiServer

NODE_NAME = "node-1"


class FakePrewarms:
    """In memory; `away` has all calls fail as while the API server cannot be reached."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        self._guard = threading.Lock()
        self._objects: dict[str, PrewarmRequest] = {}
        self._status: dict[str, dict[str, Any]] = {}
        self._watchers: list[Callable[[str], None]] = []
        self.node_labels, self.secrets, self.volumes = (
            dict(labels or {}),
            dict[tuple[str, str], dict[str, str]](),
            dict[tuple[str, str], VolumeRecord](),
        )
        self.away, self.asked, self.said = False, 0, list[NodePrewarmState | None]()

    def put(self, prewarm: PrewarmRequest) -> PrewarmRequest:
        """Make or change an object; its generation counts up."""
        with self._guard:
            before = self._objects.get(prewarm.key)
            self._objects[prewarm.key] = replace(
                prewarm, uid=f"uid-of-{prewarm.name}", generation=before.generation + 1 if before else 1
            )
        self.tell(prewarm.name)
        return self._objects[prewarm.key]

    def remove(self, key: str) -> None:
        with self._guard:
            self._objects.pop(key, None)
            self._status.pop(key, None)
        self.tell(key.rpartition("/")[2])

    def tell(self, name: str) -> None:
        """Have watchers hear that an object of a name has changed."""
        for changed in list(self._watchers):
            changed(name)

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            raise ClusterUnavailable("the Kubernetes API server cannot be reached")

    def list_requests(self) -> list[PrewarmRequest]:
        self._ask()
        return list(self._objects.values())

    @contextmanager
    def watch(self, changed: Callable[[str], None]) -> Iterator[None]:
        self._watchers.append(changed)
        yield
        self._watchers.remove(changed)

    def read_node_labels(self) -> Mapping[str, str]:
        self._ask()
        return self.node_labels

    def read_secret(self, namespace: str, name: str) -> Mapping[str, str]:
        self._ask()
        if (namespace, name) not in self.secrets:
            raise FailedPrecondition(f"the Secret {namespace}/{name} does not exist")
        return self.secrets[namespace, name]

    def get_volume_of_pvc(self, namespace: str, claim: str) -> VolumeRecord:
        self._ask()
        if (namespace, claim) not in self.volumes:
            raise FailedPrecondition(f"the PVC {namespace}/{claim} does not exist")
        return self.volumes[namespace, claim]

    def report_state(self, prewarm: PrewarmRequest, state: NodePrewarmState | None) -> None:
        with self._guard:
            self.said.append(state)
            if self._objects.get(prewarm.key) != prewarm:
                return
            status = self._status.setdefault(prewarm.key, {})
            status |= patch_with_node(prewarm, status, NODE_NAME, state, time.time()) or {}

    def status(self, key: str) -> dict[str, Any]:
        """What the object shows."""
        with self._guard:
            return {name: value for name, value in self._status.get(key, {}).items() if value is not None}


class InMemory:
    """The fake, as the suite sees it."""

    def __init__(self) -> None:
        self.prewarms: NodePrewarms = (fake := FakePrewarms({"pool": "gpu"}))
        self.fake, self.put, self.remove, self.status = fake, fake.put, fake.remove, fake.status

    def add_secret(self, name: str, values: Mapping[str, str]) -> None:
        self.fake.secrets["default", name] = dict(values)

    def add_claim(self, name: str, record: VolumeRecord) -> None:
        self.fake.volumes["default", name] = record

    def close(self) -> None:
        return


class InCluster:
    """The objects of a cluster, as the suite sees them."""

    def __init__(self, cluster: ApiServer) -> None:
        self.cluster, self.registry = cluster, KubernetesVolumeRegistry(cluster.client())
        self.prewarms = KubernetesNodePrewarms(
            cluster.client(), NODE_NAME, self.registry, Outbox(write_interval=0.0)
        )
        make_node(cluster, NODE_NAME, {"pool": "gpu"})

    def put(self, prewarm: PrewarmRequest) -> PrewarmRequest:
        made = apply(self.cluster, thing(prewarm))
        return replace(prewarm, uid=made["metadata"]["uid"], generation=made["metadata"]["generation"])

    def remove(self, key: str) -> None:
        self.cluster.client().call("DELETE", path(*key.split("/")))

    def status(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.client().call("GET", path(*key.split("/"))).get("status", {})
        return found

    def add_secret(self, name: str, values: Mapping[str, str]) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        apply(
            self.cluster,
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": "default"},
                "data": data,
            },
        )

    def add_claim(self, name: str, record: VolumeRecord) -> None:
        self.registry.put(record)
        bind(self.cluster, name, record.name)

    def close(self) -> None:
        self.prewarms.close()


def path(namespace: str, name: str) -> str:
    """Where a CachePrewarm is."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/cacheprewarms/{name}"


def thing(prewarm: PrewarmRequest) -> dict[str, Any]:
    """The object that people write."""
    spec: dict[str, Any] = {"caches": list(map(_cache, prewarm.caches))}
    if prewarm.selector:
        spec["nodeSelector"] = dict(prewarm.selector)
    meta = {"name": prewarm.name, "namespace": prewarm.namespace}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "CachePrewarm", "metadata": meta, "spec": spec}


def _cache(cache: PrewarmedCache) -> dict[str, Any]:
    named: dict[str, Any] = (
        {"claimName": cache.pvc_name} if cache.pvc_name else {"parameters": dict(cache.parameters)}
    )
    return named | ({"secretRef": {"name": cache.secret_name}} if cache.secret_name else {})


def apply(cluster: ApiServer, what: dict[str, Any]) -> dict[str, Any]:
    """Make or change an object with kubectl; what became of it."""
    return dict(json.loads(cluster.kubectl("apply", "-o", "json", "-f", "-", stdin=what)))


def make_node(cluster: ApiServer, name: str, labels: Mapping[str, str]) -> None:
    """A Node object, which no kubelet stands behind."""
    apply(cluster, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": dict(labels)}})


def bind(cluster: ApiServer, claim: str, volume: str, phase: str = "Bound") -> None:
    """A PVC of the PV `volume`, as the controller of PVs would leave it."""
    resources = {"requests": {"storage": "1Gi"}}
    spec = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "volumeName": volume,
        "resources": resources,
    }
    apply(
        cluster,
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim, "namespace": "default"},
            "spec": spec,
        },
    )
    cluster.kubectl(
        "patch",
        "pvc",
        claim,
        "--subresource=status",
        "--type=merge",
        "-p",
        f'{{"status":{{"phase":"{phase}"}}}}',
    )


def order(
    name: str, *caches: PrewarmedCache, selector: Mapping[str, str] | None = None, namespace: str = "default"
) -> PrewarmRequest:
    """An order that nobody has given yet."""
    return PrewarmRequest(namespace, name, "", 0, caches, dict(selector or {}))


READY = NodePrewarmState(PrewarmState.READY, 100)
