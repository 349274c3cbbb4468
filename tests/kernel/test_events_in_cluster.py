"""Both programs on a cluster: what people see of a fill that takes a while, on its pod or PVC and with
`kubectl get`."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from csi.registry.events.recorder import ObjectReference
from tests.apiserver import ApiServer
from tests.csi.registry.events.recorders import events
from tests.kernel import requests
from tests.kernel.machine import MIB, Machine, content, until
from tests.kernel.requests import OK
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

SECONDS = 9
SLOW = {"repoId": "org/model", "bandwidthLimit": f"{24 // SECONDS}Mi"}
COMMIT: dict[str, str] = {}
"""What a volume needs no pin for: the model's commit."""


@pytest.fixture(scope="module")
def machine(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Both programs on one cluster, and a hub with one model."""
    folder, tree = tmp_path_factory.mktemp("told"), tmp_path_factory.mktemp("model")
    # One that another test left would have the model filled before it is asked for, or be of another hub's
    # model.
    api_server.kubectl("delete", "cacheprewarms,cachepins", "--all", "--all-namespaces")
    with Hub() as hub:
        model = hub.repo("org/model", {"model.bin": content(tree / "model.bin", 24 * MIB)})
        COMMIT["revision"] = model.branches["main"]
        with Machine(folder, {"HF_ENDPOINT": hub.endpoint}, kubeconfig=api_server.kubeconfig()) as running:
            yield running
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def empty(machine: Machine) -> Iterator[None]:
    """The store forgets the model after each test."""
    yield
    machine.plugins.node.stop()
    shutil.rmtree(machine.store / "images")
    machine.restart_node()


def said(cluster: ApiServer, subject: ObjectReference) -> dict[str, dict[str, Any]]:
    return {event["reason"]: event for event in events(cluster, subject)}


def test_the_pod_of_an_inline_volume_is_told_of_its_fill(machine: Machine, api_server: ApiServer) -> None:
    pod = f"reader-{uuid.uuid4().hex[:8]}"
    about = ObjectReference("Pod", "default", pod)
    assert machine.inline(pod, SLOW) == (OK, "")
    assert until(lambda: {"CacheReady", "CachePinned"} <= set(said(api_server, about)))
    found = said(api_server, about)
    assert set(found) == {"CacheFilling", "CacheReady", "CachePinned"}
    assert "of 24.0 MiB" in found["CacheFilling"]["message"]
    assert "MiB/s" in found["CacheFilling"]["message"]
    assert found["CacheReady"]["message"].startswith("image ")
    assert "24.0 MiB in" in found["CacheReady"]["message"]
    assert found["CacheFilling"]["source"] == {"component": "datacache-node", "host": "node-1"}
    assert machine.unpublish(pod) == (OK, "")


def test_the_claim_of_a_persistent_volume_is_told_and_kubectl_get_shows_how_far_it_is(
    machine: Machine, api_server: ApiServer
) -> None:
    uid = str(uuid.uuid4())
    facts = {"pvc/name": "models", "pvc/namespace": "default", "pv/name": f"pvc-{uid}"}
    about = ObjectReference("PersistentVolumeClaim", "default", "models", uid)
    volume = machine.create(
        f"pvc-{uid}", {**SLOW, **{f"csi.storage.k8s.io/{key}": value for key, value in facts.items()}}
    )
    assert until(lambda: "CachePinned" in said(api_server, about))
    pinned = said(api_server, about)["CachePinned"]
    assert "org/model, revision main -> " in pinned["message"]
    assert pinned["reportingComponent"] == "datacache-controller"
    stage = machine.node.NodeStageVolume.future(
        requests.stage(volume, machine.staging(volume.volume_id)), timeout=60
    )
    row = ("get", "dcv", volume.volume_id, "-o", "jsonpath={.status.filling}")
    assert until(lambda: api_server.kubectl(*row).endswith("%"), 30)
    stage.result(60)
    assert until(lambda: "CacheReady" in said(api_server, about) and not api_server.kubectl(*row))
    assert set(said(api_server, about)) == {"CachePinned", "CacheFilling", "CacheReady"}
    assert machine.unstage(volume.volume_id) == (OK, "")


def test_a_failure_is_told_with_its_reason_and_limits_that_were_lowered_too(
    machine: Machine, api_server: ApiServer
) -> None:
    pod = f"reader-{uuid.uuid4().hex[:8]}"
    code, message = machine.inline(pod, {"repoId": "org/none"})
    assert code is grpc.StatusCode.UNAUTHENTICATED
    about = ObjectReference("Pod", "default", pod)
    assert until(lambda: "CacheFillFailed" in said(api_server, about))
    event = said(api_server, about)["CacheFillFailed"]
    assert (event["type"], event["message"]) == ("Warning", message)
    clamped = ObjectReference("Pod", "default", f"reader-{uuid.uuid4().hex[:8]}")
    assert machine.inline(clamped.name, {"repoId": "org/model", "performanceLevel": "PL3"}) == (OK, "")
    assert until(lambda: "PerformanceClamped" in said(api_server, clamped))
    assert "lowered to PL1" in said(api_server, clamped)["PerformanceClamped"]["message"]
    assert machine.unpublish(clamped.name) == (OK, "")


def test_an_api_server_that_is_away_delays_no_volume(machine: Machine, api_server: ApiServer) -> None:
    pod = f"reader-{uuid.uuid4().hex[:8]}"
    api_server.stop()
    try:
        assert machine.inline(pod, SLOW | COMMIT) == (OK, "")
        assert machine.unpublish(pod) == (OK, "")
    finally:
        api_server.start()
    assert len(machine.logged("cluster unavailable; writes are retried later")) == 1
