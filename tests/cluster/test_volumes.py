"""Volumes of every kind, in real pods that read real bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.cluster.installed import Driver
from tests.cluster.kubectl import Object, condition
from tests.cluster.lab import Lab
from tests.cluster.node import Node
from tests.cluster.pods import applied
from tests.cluster.spaces import wait_for
from tests.cluster.volumes import (
    DRIVER,
    claim,
    claim_volume,
    inline_volume,
    namespace,
    reader,
    secret,
    storage_class,
)
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MODEL = os.urandom(3 << 20)
SUM = hashlib.sha256(MODEL).hexdigest()
TOKEN = "hub-s3cr3t"


@pytest.fixture(scope="module", autouse=True)
def models(hub: Hub) -> None:
    """A public and a private repository."""
    hub.repo("org/model", {"model.bin": MODEL, "config.json": b"{}"})
    hub.repo("org/private", {"model.bin": MODEL[::-1]}, private=True, tokens={TOKEN})
    hub.tokens["another-token"] = "stranger"


@contextmanager
def volumes_of(
    lab: Lab, parameters: dict[str, str], name: str = "models", binding: str = "Immediate"
) -> Iterator[None]:
    with applied(lab.kubectl, storage_class(name, parameters, binding)):
        yield


@contextmanager
def pods(lab: Lab, *wanted: Object) -> Iterator[None]:
    """The pods run for the block."""
    with applied(lab.kubectl, *wanted):
        for one in wanted:
            lab.kubectl.wait_running(one["metadata"]["name"], one["metadata"]["namespace"])
        yield


def sum_in(lab: Lab, name: str, namespace: str = "default") -> str:
    return lab.kubectl.exec(name, ["sha256sum", "/data/model.bin"], namespace).split()[0]


def settled(lab: Lab, driver: Driver) -> None:
    """Nothing is mounted any more, and no volume is left."""
    for node in lab.nodes:
        empty(driver, node)
    wait_for(
        lambda: lab.kubectl.list("cachevolumes", "") == [] and lab.kubectl.list("pv", "") == [],
        60,
        "volumes to go",
    )


def empty(driver: Driver, node: Node) -> None:
    """Nothing of the driver's is mounted on the node any more, and no loop device is over an image."""
    wait_for(lambda: driver.mounts(node) == [], 20, f"the mounts of {node.name} to go")
    wait_for(lambda: driver.loops(node) == [], 20, f"the loop devices of {node.name} to go")


@pytest.mark.parametrize("binding", ["Immediate", "WaitForFirstConsumer"])
def test_a_claim_becomes_a_volume_that_ten_pods_read(lab: Lab, driver: Driver, binding: str) -> None:
    readers = [reader(f"reader-{number}", claim_volume("model")) for number in range(10)]
    with (
        volumes_of(lab, {"repoId": "org/model"}, binding=binding),
        applied(lab.kubectl, claim("model", "models")),
        pods(lab, *readers),
    ):
        assert {sum_in(lab, one["metadata"]["name"]) for one in readers} == {SUM}
        (volume,) = lab.kubectl.list("cachevolumes", "")
        assert condition(volume, "Resolved") == "True"
        assert volume["status"]["source"]
        assert (
            len(
                {
                    target
                    for target in driver.mounts(lab.nodes[0])
                    if "/plugins/" in target and "globalmount" not in target
                }
            )
            == 1
        )
    settled(lab, driver)


def test_a_volume_cannot_be_written(lab: Lab, driver: Driver) -> None:
    with (
        pods(lab, reader("writer", inline_volume({"repoId": "org/model"}))),
        pytest.raises(AssertionError, match="Read-only file system"),
    ):
        lab.kubectl.exec("writer", ["touch", "/data/new"])


def test_two_pods_of_a_node_read_a_claim_of_one_writer_where_the_class_downgrades(
    lab: Lab, driver: Driver
) -> None:
    readers = [reader(f"downgraded-{number}", claim_volume("rwo")) for number in range(2)]
    parameters = {"repoId": "org/model", "writerAccessModes": "downgrade"}
    with (
        volumes_of(lab, parameters),
        applied(lab.kubectl, claim("rwo", "models", "ReadWriteOnce")),
        pods(lab, *readers),
    ):
        assert {sum_in(lab, one["metadata"]["name"]) for one in readers} == {SUM}
    settled(lab, driver)


def test_a_claim_that_wants_to_write_is_refused_with_the_way_out(lab: Lab, driver: Driver) -> None:
    with (
        volumes_of(lab, {"repoId": "org/model"}),
        applied(lab.kubectl, claim("writer", "models", "ReadWriteMany")),
    ):
        wait_for(lambda: "writerAccessModes" in lab.kubectl.events("writer"), 60, "the event of the refusal")
        assert lab.kubectl.get("pvc", "writer")["status"]["phase"] == "Pending"


def test_an_inline_volume_is_read_and_gone_with_its_pod(lab: Lab, driver: Driver) -> None:
    with pods(lab, reader("inline", inline_volume({"repoId": "org/model"}))):
        assert sum_in(lab, "inline") == SUM
    settled(lab, driver)


def test_a_static_volume_reads_with_its_own_secret(lab: Lab, driver: Driver) -> None:
    csi = {
        "driver": DRIVER,
        "volumeHandle": "static-model",
        "readOnly": True,
        "volumeAttributes": {"repoId": "org/private", "size": "1Gi"},
        "nodeStageSecretRef": {"name": "token", "namespace": "default"},
    }
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadOnlyMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "csi": csi,
    }
    static = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "static-model"},
        "spec": spec,
    }
    wanted = [secret("token", token=TOKEN), static, claim("static", "", volume="static-model")]
    with applied(lab.kubectl, *wanted), pods(lab, reader("static", claim_volume("static"))):
        assert sum_in(lab, "static") == hashlib.sha256(MODEL[::-1]).hexdigest()
    settled(lab, driver)


def test_a_private_model_comes_with_the_secrets_that_its_class_names(lab: Lab, driver: Driver) -> None:
    named = {
        f"csi.storage.k8s.io/{which}-secret-name": "token"
        for which in ("provisioner", "node-stage", "node-publish")
    }
    spaces = {
        f"csi.storage.k8s.io/{which}-secret-namespace": "${pvc.namespace}"
        for which in ("provisioner", "node-stage", "node-publish")
    }
    with (
        applied(lab.kubectl, secret("token", token=TOKEN)),
        volumes_of(lab, {"repoId": "org/private", **named, **spaces}),
        applied(lab.kubectl, claim("private", "models")),
        pods(lab, reader("private", claim_volume("private"))),
    ):
        assert sum_in(lab, "private") == hashlib.sha256(MODEL[::-1]).hexdigest()
    settled(lab, driver)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "give a token in a Secret"),
        ("another-token", "this token may not see it"),
        ("wrong", "refuses the token"),
    ],
)
def test_another_tenant_does_not_get_a_private_image_that_the_node_has(
    lab: Lab, driver: Driver, token: str, words: str
) -> None:
    private = {"repoId": "org/private"}
    with ExitStack() as stack:
        stack.enter_context(applied(lab.kubectl, secret("token", token=TOKEN)))
        stack.enter_context(pods(lab, reader("owner", inline_volume(private, "token"))))
        stack.enter_context(applied(lab.kubectl, namespace("strangers")))
        given = inline_volume(private, "token") if token else inline_volume(private)
        wanted = [secret("token", "strangers", token=token)] if token else []
        stack.enter_context(applied(lab.kubectl, *wanted, reader("stranger", given, namespace="strangers")))
        wait_for(
            lambda: words in lab.kubectl.events("stranger", "strangers"), 60, f"the event that says {words!r}"
        )
        assert lab.kubectl.get("pod", "stranger", "strangers")["status"]["phase"] == "Pending"
        assert TOKEN not in lab.kubectl.events("stranger", "strangers")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"type": "URL", "url": "http://169.254.169.254/latest"}, "--allow-origins"),
        ({"repoId": "org/model", "manifestDigest": "0" * 64}, "manifestDigest"),
        ({"repoId": "org/model", "egressProfile": "fast"}, "egressProfile"),
        ({"repoId": "org/model", "token": "abc"}, "Secret"),
        ({"repoId": "../../etc"}, "repoId"),
    ],
)
def test_hostile_attributes_are_refused_by_name(
    lab: Lab, driver: Driver, attributes: dict[str, str], words: str
) -> None:
    with applied(lab.kubectl, reader("hostile", inline_volume(attributes))):
        wait_for(lambda: words in lab.kubectl.events("hostile"), 60, f"the event that says {words!r}")
