"""Where the controller looks PVCs up: a real API server, and the fake that other tests use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pytest

from controller_plugin.pvc_annotations import ClusterPvcs
from csi.errors import ClusterForbids, FailedPrecondition
from tests.apiserver import STRANGER, ApiServer
from tests.controller_plugin.pvcs import FakeClaims


class Kept(Protocol):
    """PVCs that a test may put and delete."""

    def put(self, namespace: str, name: str, annotations: Mapping[str, str]) -> None: ...

    def delete(self, namespace: str, name: str) -> None: ...

    def read_annotations(self, namespace: str, name: str) -> dict[str, str]: ...


class InCluster(ClusterPvcs):
    """The PVCs of a cluster, put by its administrator."""

    def __init__(self, cluster: ApiServer) -> None:
        super().__init__(cluster.client())
        self._cluster = cluster

    def put(self, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        spec = {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "any",
            "resources": {"requests": {"storage": "1Gi"}},
        }
        meta = {"name": name, "namespace": namespace, "annotations": dict(annotations)}
        thing = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
        self._cluster.kubectl("apply", "--server-side", "-f", "-", stdin=thing)

    def delete(self, namespace: str, name: str) -> None:
        # The protection of PVCs in use waits for a controller that is not here.
        self._cluster.kubectl(
            "patch", "pvc", name, "-n", namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
        )
        self._cluster.kubectl("delete", "pvc", name, "-n", namespace, "--ignore-not-found")


@pytest.fixture(params=["fake", "cluster"])
def claims(request: pytest.FixtureRequest) -> Kept:
    return FakeClaims() if request.param == "fake" else InCluster(request.getfixturevalue("cluster"))


def test_a_claim_has_the_annotations_that_it_was_given_last(claims: Kept) -> None:
    claims.put("default", "models", {"datacache.csi.io/repoId": "org/old", "other": "x"})
    claims.put("default", "models", {"datacache.csi.io/repoId": "org/new"})
    assert claims.read_annotations("default", "models")["datacache.csi.io/repoId"] == "org/new"
    claims.put("default", "plain", {})
    assert "datacache.csi.io/repoId" not in claims.read_annotations("default", "plain")
    for name in ("models", "plain"):
        claims.delete("default", name)


def test_a_claim_that_is_gone_is_named(claims: Kept) -> None:
    claims.put("default", "gone", {})
    claims.delete("default", "gone")
    for namespace, name in (("default", "gone"), ("nowhere", "gone")):
        with pytest.raises(FailedPrecondition, match=f"PVC {namespace}/{name} is gone"):
            claims.read_annotations(namespace, name)


def test_a_missing_right_is_named(cluster: ApiServer) -> None:
    with pytest.raises(ClusterForbids, match='cannot get resource "persistentvolumeclaims"'):
        ClusterPvcs(cluster.client(STRANGER)).read_annotations("default", "models")
