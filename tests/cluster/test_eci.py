"""What ECI's users have runs as it is: their DataCaches, their pods, and their SDKs, on real nodes with
real origins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster.eci import KEY_ID, KEY_SECRET, Eci, eci
from tests.cluster.images import Archive
from tests.cluster.installed import NAMESPACE, Driver
from tests.cluster.kubectl import Object, condition
from tests.cluster.lab import Lab
from tests.cluster.node import Node
from tests.cluster.pods import applied, pod
from tests.cluster.spaces import wait_for
from tests.cluster.test_volumes import settled
from tests.cluster.volumes import namespace
from tests.controller_plugin.operator.openapi.sdks import KINDS, Sdk
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MODEL = os.urandom(2 << 20)
BUCKET = "k8s.aliyun.com/eci-data-cache-bucket"


@pytest.fixture(scope="session")
def place(driver: Driver, hub: Hub, python_image: Archive) -> Iterator[Eci]:
    with eci(driver, hub) as found:
        yield found


def available(lab: Lab, *caches: Object) -> None:
    for cache in caches:
        lab.kubectl.wait(
            "datacache",
            cache["metadata"]["name"],
            lambda found: found.get("status", {}).get("status") == "Available",
        )


def parted(objects: list[Object]) -> tuple[list[Object], list[Object]]:
    """DataCaches, and the rest."""
    return [one for one in objects if one["kind"] == "DataCache"], [
        one for one in objects if one["kind"] != "DataCache"
    ]


@contextmanager
def cached(lab: Lab, objects: list[Object]) -> Iterator[list[Object]]:
    """The DataCaches among `objects` are Available for the block, which gets the others."""
    caches, others = parted(objects)
    with applied(lab.kubectl, *caches):
        available(lab, *caches)
        yield others


def listed(lab: Lab, reader: Object) -> str:
    """What a pod that lists its folders said, once it is done."""
    name = reader["metadata"]["name"]
    with applied(lab.kubectl, reader):
        lab.kubectl.wait("pod", name, lambda thing: thing["status"].get("phase") == "Succeeded")
        return lab.kubectl.logs(name)


def has(said: str, name: str, size: int) -> bool:
    return bool(re.search(rf"\b{size}\b.*\b{re.escape(name)}$", said, re.MULTILINE))


def test_a_folder_of_a_nas_with_all_the_options_that_alibaba_documents(place: Eci) -> None:
    (place.folder / "deep").mkdir()
    (place.folder / "deep/model.bin").write_bytes(MODEL)
    with cached(place.lab, place.example("nas")) as (reader,):
        assert has(listed(place.lab, reader), "model.bin", len(MODEL))


def test_a_folder_of_an_oss_bucket_whose_key_is_in_the_datacache(place: Eci) -> None:
    bucket = place.objects.bucket({"whisper/base/model.bin": MODEL, "other/model.bin": b"no"})
    example = place.example("oss", **{"speech-models": bucket})
    with cached(place.lab, example) as (reader,):
        said = listed(place.lab, reader)
        kept = place.lab.kubectl.run("get", "datacache", "speech", "-o", "yaml", "--show-managed-fields")
    assert has(said, "model.bin", len(MODEL))
    assert "other" not in said
    assert example[0]["spec"]["dataSource"]["options"]["akSecret"] not in kept.replace(
        f"s3://{place.images}", ""
    )


def test_a_file_of_a_web_server(place: Eci) -> None:
    place.web.files["/vocabulary.txt"] = b"one\ntwo\n"
    with cached(place.lab, place.example("url")) as (reader,):
        assert has(listed(place.lab, reader), "vocabulary.txt", 8)


def test_a_folder_of_a_model_of_modelscope(place: Eci) -> None:
    place.modelscope.repo(
        "example-org/word-segmentation", {"model.bin": MODEL, "tokenizer/vocabulary.json": b"[1, 2, 3]"}
    )
    with cached(place.lab, place.example("modelscope")) as (reader,):
        said = listed(place.lab, reader)
    assert has(said, "vocabulary.json", 9)
    assert "model.bin" not in said


def test_a_model_and_weights_tuned_for_it_as_two_caches_of_one_pod_with_bought_iops(place: Eci) -> None:
    place.hub.repo("example-org/llama-7b", {"model.safetensors": MODEL})
    tuned = place.hub.repo("example-org/llama-7b-lora", {"adapter.safetensors": b"weights"})
    tuned.branches["v1"] = tuned.branches["main"]
    with cached(place.lab, place.example("huggingface")) as (reader,):
        said = listed(place.lab, reader)
        assert has(said, "model.safetensors", len(MODEL))
        assert has(said, "adapter.safetensors", 7)
        wait_for(
            lambda: (
                "provisionedIops 25000 lowered to 17000, the most for 20 GiB"
                in place.lab.kubectl.events("llama")
            ),
            20,
            "the event",
        )


def test_a_deployment_goes_from_one_pod_to_ten(place: Eci) -> None:
    place.hub.repo("example-org/chat", {"model.safetensors": MODEL})
    kubectl = place.lab.kubectl

    def ready(count: int) -> None:
        kubectl.wait("deployment", "chat", lambda found: found["status"].get("readyReplicas") == count)

    with cached(place.lab, place.example("deployment")) as others, applied(kubectl, *others):
        ready(1)
        kubectl.run("scale", "deployment/chat", "--replicas=10")
        ready(10)
        sizes = {
            kubectl.exec(one["metadata"]["name"], ["stat", "-c", "%s", "/model/model.safetensors"])
            for one in kubectl.list("pod", selector="app=chat")
        }
        assert sizes == {f"{len(MODEL)}\n"}
    # `sleep` does not hear that it is to end.
    wait_for(lambda: not kubectl.list("pod", selector="app=chat"), 60, "the pods to go")
    settled(place.lab, place.driver)


def a_cache(name: str, path: str, repository: str, **spec: Any) -> Object:
    source = {"type": "URL", "options": {"repoSource": "HuggingFace/Model", "repoId": repository}}
    return {
        "apiVersion": "eci.aliyun.com/v1alpha1",
        "kind": "DataCache",
        "metadata": {"name": name},
        "spec": {"path": path, "dataSource": source, **spec},
    }


def a_pod(name: str, path: str, where: str = "default", **more: Any) -> Object:
    """A pod as ECI has it, with the host's folder `path` at /data."""
    made = pod(name, volumes=[{"name": "data", "hostPath": {"path": path}}], **more)
    made["metadata"] |= {"namespace": where, "annotations": {BUCKET: "default"}}
    made["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    return made


def sum_in(lab: Lab, name: str) -> str:
    return lab.kubectl.exec(name, ["sha256sum", "/data/model.bin"]).split()[0]


def test_a_node_that_never_saw_it_serves_a_cache_whose_origin_was_changed_and_switched_off(
    place: Eci, second_node: Node
) -> None:
    model = place.folder / "kept/model.bin"
    model.parent.mkdir()
    model.write_bytes(MODEL)
    (cache, reader) = place.example("nas", **{"/models/portraits/": f"{model.parent}/"})
    cache["metadata"]["name"] = "outlives"
    cache["spec"]["path"] = "/models/outlives"
    lab, first = place.lab, place.lab.nodes[0]
    cache["spec"]["nodeSelector"] = {"kubernetes.io/hostname": first.name}
    readers = [
        a_pod(f"reader-{node.number}", "/models/outlives", node=node.name) for node in (first, second_node)
    ]
    for one in readers:
        one["metadata"]["annotations"][BUCKET] = "vision"
    with applied(lab.kubectl, cache):
        available(lab, cache)
        with applied(lab.kubectl, readers[0]):
            lab.kubectl.wait_running("reader-1")
            before = sum_in(lab, "reader-1")
            model.write_bytes(b"something else")
            place.nas.stop()
            try:
                with applied(lab.kubectl, readers[1]):
                    lab.kubectl.wait_running(f"reader-{second_node.number}")
                    assert sum_in(lab, f"reader-{second_node.number}") == before
            finally:
                place.nas.start()
    settled(lab, place.driver)


def test_pods_that_ask_for_no_cache_start_while_the_operator_is_away_and_those_that_do_are_told(
    place: Eci,
) -> None:
    lab = place.lab
    scaled = ["-n", NAMESPACE, "scale", "deployment/datacache-csi-operator"]
    lab.kubectl.run(*scaled, "--replicas=0")
    try:
        wait_for(
            lambda: lab.kubectl.list("pod", NAMESPACE, "app.kubernetes.io/component=operator") == [],
            60,
            "the operator to go",
        )
        with applied(lab.kubectl, pod("plain", volumes=[{"name": "data", "hostPath": {"path": "/tmp"}}])):
            lab.kubectl.wait_running("plain")
        with pytest.raises(AssertionError, match=r"failed calling webhook .*pods\.datacache\.csi\.io"):
            lab.kubectl.apply(a_pod("asks", "/models/any"))
    finally:
        lab.kubectl.run(*scaled, "--replicas=1")
        lab.kubectl.run(
            "-n", NAMESPACE, "rollout", "status", "deployment/datacache-csi-operator", "--timeout=60s"
        )


def test_a_namespace_that_a_cache_is_not_for_is_refused_and_a_hostpath_of_no_cache_is_left_alone(
    place: Eci,
) -> None:
    place.hub.repo("example-org/team", {"model.bin": MODEL})
    lab, cache = place.lab, a_cache("of-a-team", "/models/team", "example-org/team", namespaces=["team"])
    with cached(lab, [cache]), applied(lab.kubectl, namespace("team")):
        with pytest.raises(
            AssertionError,
            match="is not for namespace default; have its owner list the namespace in spec.namespaces",
        ):
            lab.kubectl.apply(a_pod("refused", "/models/team"))
        with applied(lab.kubectl, a_pod("theirs", "/models/team", "team"), a_pod("plain", "/tmp")):
            lab.kubectl.wait_running("theirs", "team")
            assert "hostPath" in lab.kubectl.wait_running("plain")["spec"]["volumes"][0]
            matched = lab.kubectl.wait(
                "datacache", "of-a-team", lambda found: found["status"].get("lastMatchedTime")
            )
            assert matched["status"]["lastMatchedTime"].endswith("Z")
    settled(lab, place.driver)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_sdk_creates_a_cache_that_pods_read_and_keep_when_it_is_deleted(place: Eci, kind: Any) -> None:
    place.hub.repo("example-org/by-sdk", {"model.bin": MODEL})
    lab, (address, port) = place.lab, place.api
    sdk: Sdk = kind(port, KEY_ID, KEY_SECRET, address)
    source = {"Type": "URL", "Options": {"repoSource": "HuggingFace/Model", "repoId": "example-org/by-sdk"}}
    made = sdk("CreateDataCache", Path="/models/by-sdk", DataSource=source)["DataCacheId"]

    def found() -> list[dict[str, Any]]:
        return list(sdk("DescribeDataCaches", DataCacheId=[made])["DataCaches"])

    try:
        wait_for(lambda: found()[0]["Status"] == "Available", 60, "the cache")
        with applied(lab.kubectl, a_pod("by-sdk", "/models/by-sdk")):
            lab.kubectl.wait_running("by-sdk")
            sdk("DeleteDataCache", DataCacheId=made)
            wait_for(lambda: found() == [], 30, "the cache to go")
            assert lab.kubectl.exec("by-sdk", ["stat", "-c", "%s", "/data/model.bin"]) == f"{len(MODEL)}\n"
            assert condition(lab.kubectl.get("pod", "by-sdk"), "Ready") == "True"
    finally:
        if found():
            sdk("DeleteDataCache", DataCacheId=made)
    settled(lab, place.driver)
