"""Two nodes and two replicas of the controller in one cluster: a branch that moves is one commit for a
namespace, and a PVC names its model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.apiserver import ApiServer
from tests.controller_plugin.test_cluster_pvcs import InCluster
from tests.kernel.machine import Machine, until
from tests.kernel.requests import OK
from tests.origins.hub import Hub
from tests.origins.repositories import Repository

pytestmark = pytest.mark.kernel

MAIN = {"repoId": "org/model", "revision": "main"}
GOOD, WRONG = {"token": "good-s3cr3t"}, {"token": "wrong-s3cr3t"}
CLAIM = {"csi.storage.k8s.io/pvc/name": "models", "csi.storage.k8s.io/pvc/namespace": "default"}


@pytest.fixture
def model(hub: Hub) -> Repository:
    """A private repository that GOOD may read."""
    return hub.repo("org/model", {"config.json": b"old"}, private=True, tokens={GOOD["token"]})


@pytest.fixture
def machines(hub: Hub, model: Repository, cluster: ApiServer, tmp_path: Path) -> Iterator[list[Machine]]:
    """Two nodes, node-a and node-b, each with a replica of the controller."""
    with ExitStack() as running:
        made = []
        for name in ("node-a", "node-b"):
            (tmp_path / name).mkdir()
            flags = ["--node-id", name, "--proof-ttl", "0s"]
            made.append(
                running.enter_context(
                    Machine(
                        tmp_path / name, {"HF_ENDPOINT": hub.endpoint}, flags, kubeconfig=cluster.kubeconfig()
                    )
                )
            )
        yield made


def pins(cluster: ApiServer) -> list[dict[str, Any]]:
    return json.loads(cluster.kubectl("get", "dcpin", "-A", "-o", "json"))["items"]  # type: ignore[no-any-return]


def held(cluster: ApiServer) -> list[str]:
    return sorted(
        name for pin in pins(cluster) for kind in ("nodes", "volumes") for name in pin["spec"].get(kind, {})
    )


def read(machine: Machine, pod: str) -> bytes:
    return (machine.target(pod) / "config.json").read_bytes()


def test_replicas_and_claims_read_what_the_branch_was_until_the_last_of_them_is_gone(
    machines: list[Machine], model: Repository, cluster: ApiServer
) -> None:
    first, second = machines
    assert first.inline("pod", MAIN, GOOD) == (OK, "")
    model.commit({"config.json": b"new"})
    assert second.inline("pod", MAIN, GOOD) == (OK, "")
    volume = second.create("pvc-1", MAIN | CLAIM, GOOD)
    target = second.show(volume, "of-a-claim", GOOD)
    assert read(first, "pod") == read(second, "pod") == (target / "config.json").read_bytes() == b"old"
    assert held(cluster) == sorted([volume.volume_id, "node-a", "node-b"])
    for machine in machines:
        assert machine.unpublish("pod") == (OK, "")
    assert until(lambda: held(cluster) == [volume.volume_id])
    assert (second.unpublish("of-a-claim", volume.volume_id), second.unstage(volume.volume_id)) == (
        (OK, ""),
        (OK, ""),
    )
    first.plugins.client("controller").__enter__().delete(volume.volume_id)
    assert pins(cluster) == []
    assert first.inline("later", MAIN, GOOD) == (OK, "")
    assert read(first, "later") == b"new"


def test_a_pinned_and_cached_model_is_not_handed_to_a_wrong_token(
    machines: list[Machine], cluster: ApiServer
) -> None:
    first, second = machines
    assert first.inline("pod", MAIN, GOOD) == (OK, "")
    for machine in machines:
        for secrets in (WRONG, None):
            assert machine.inline("thief", MAIN, secrets)[0] is grpc.StatusCode.UNAUTHENTICATED
    assert second.mounts() == []
    assert held(cluster) == ["node-a"]


def test_a_killed_plugin_still_holds_and_lets_go_of_what_went_meanwhile(
    machines: list[Machine], model: Repository, cluster: ApiServer
) -> None:
    first, second = machines
    for pod in ("one", "two"):
        assert first.inline(pod, MAIN, GOOD) == (OK, "")
    model.commit({"config.json": b"new"})
    first.plugins.node.kill()
    first.restart_node()
    assert second.inline("pod", MAIN, GOOD) == (OK, "")
    assert read(second, "pod") == b"old"
    assert held(cluster) == ["node-a", "node-b"]
    assert first.unpublish("one") == (OK, "")
    assert first.inline("three", MAIN, GOOD) == (OK, "")
    assert read(first, "three") == b"old"
    for pod in ("two", "three"):
        assert first.unpublish(pod) == (OK, "")
    assert until(lambda: held(cluster) == ["node-b"])


def test_while_the_api_server_is_away_a_node_mounts_what_it_holds_and_nothing_else(
    machines: list[Machine], model: Repository, cluster: ApiServer
) -> None:
    first, second = machines
    assert first.inline("pod", MAIN, GOOD) == (OK, "")
    model.commit({"config.json": b"new"})
    cluster.stop()
    try:
        assert first.inline("another", MAIN, GOOD) == (OK, "")
        assert read(first, "another") == b"old"
        assert second.inline("pod", MAIN, GOOD)[0] is grpc.StatusCode.UNAVAILABLE
        assert second.mounts() == []
        commit = MAIN | {"revision": model.branches["main"]}
        assert second.inline("of-a-commit", commit, GOOD) == (OK, "")
        assert read(second, "of-a-commit") == b"new"
        for pod in ("pod", "another"):
            assert first.unpublish(pod) == (OK, "")
    finally:
        cluster.start()
    assert until(lambda: pins(cluster) == [], 60)


def test_a_commit_that_the_hub_has_no_more_names_the_pin_and_its_release_works(
    machines: list[Machine], model: Repository, cluster: ApiServer
) -> None:
    first, second = machines
    assert first.inline("pod", MAIN, GOOD) == (OK, "")
    gone = model.branches["main"]
    model.commit({"config.json": b"new"})
    del model.commits[gone]
    code, said = second.inline("pod", MAIN, GOOD)
    (pin,) = pins(cluster)
    release = f"kubectl delete cachepin -n default {pin['metadata']['name']}"
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert release in said
    assert gone in said
    cluster.kubectl(*release.split()[1:])
    assert until(lambda: second.inline("pod", MAIN, GOOD) == (OK, ""), 20)
    assert read(second, "pod") == b"new"
    assert read(first, "pod") == b"old"


def test_a_claim_names_its_model_in_annotations(machines: list[Machine], cluster: ApiServer) -> None:
    machine, claims = machines[0], InCluster(cluster)
    parameters = {"repoSource": "HuggingFace/Model", "pvcAnnotations": "repoId,revision", **CLAIM}
    claims.put("default", "models", {"datacache.csi.io/repoId": "org/model"})
    try:
        volume = machine.create("pvc-annotated", parameters, GOOD)
        assert volume.volume_context["namedBy"] == "pod"
        assert (machine.show(volume, "pod", GOOD) / "config.json").read_bytes() == b"old"
        claims.put("default", "models", {"datacache.csi.io/url": "http://169.254.169.254/latest"})
        with pytest.raises(
            grpc.RpcError, match="annotation 'datacache.csi.io/url', which its StorageClass does not allow"
        ):
            machine.create("pvc-2", parameters, GOOD)
        assert (machine.unpublish("pod", volume.volume_id), machine.unstage(volume.volume_id)) == (
            (OK, ""),
            (OK, ""),
        )
    finally:
        claims.delete("default", "models")
