"""ECI pods: what becomes an inline volume of a cache, and what is left as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from controller_plugin.operator.data_cache_index import DataCacheIndex
from controller_plugin.operator.webhook.pod_volumes import BUCKET_ANNOTATION, PodMutator
from csi.errors import InvalidParameter, PermissionDenied
from csi.parameters.data_cache import parse_data_cache
from csi.registry.datacaches.data_caches import DataCache

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
DRIVER = "datacache.csi.io"
AUTOPL = {"performanceLevel": "AutoPL", "provisionedIops": "40000"}


@pytest.fixture
def volumes() -> PodMutator:
    known = DataCacheIndex()
    for path, bucket, namespaces in (
        ("/models/llama", "default", ()),
        ("/models/llama/lora", "default", ()),
        ("/secret", "default", ("team",)),
    ):
        known.apply_event(
            path,
            DataCache(path, path, 1, 1.0, parse_data_cache(bucket, path, "URL", HUB, namespaces=namespaces)),
        )
    return PodMutator(known, DRIVER)


def test_a_pod_that_is_ahead_of_the_watch_gets_its_cache_and_one_that_matches_is_not_looked_for() -> None:
    known, met = DataCacheIndex(), list[str]()

    def meet() -> None:
        met.append("all")
        known.apply_event(
            "a", DataCache("a", "a", 1, 1.0, parse_data_cache("default", "/models/new", "URL", HUB))
        )

    volumes = PodMutator(known, DRIVER, meet)
    for _ in range(2):
        found = volumes.mutate(pod("/models/new/tokenizer"), "default")
        assert [cache.name for cache in found.caches] == ["a"]
        assert found.unmatched_paths == ()
        assert met == ["all"]
    assert volumes.mutate(pod("/var/log"), "default").unmatched_paths == ("/var/log",)
    assert len(met) == 2
    assert volumes.mutate(pod("/var/log", annotations={}), "default").unmatched_paths == ()
    assert len(met) == 2


def pod(*paths: str, annotations: Mapping[str, str] | None = None, **mount: Any) -> dict[str, Any]:
    """A pod with a hostPath volume for each path, all mounted by its one container."""
    mounts = [{"name": f"v{number}", "mountPath": f"/m{number}", **mount} for number in range(len(paths))]
    given = {BUCKET_ANNOTATION: "default"} if annotations is None else dict(annotations)
    return {
        "metadata": {"annotations": given, "labels": {"alibabacloud.com/eci": "true"}},
        "spec": {
            "containers": [{"name": "c", "image": "i", "volumeMounts": mounts}],
            "volumes": [
                {"name": f"v{number}", "hostPath": {"path": path}} for number, path in enumerate(paths)
            ],
        },
    }


def patched(thing: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    """The pod with the patch applied, which has nothing but replacements."""
    result = copy.deepcopy(thing)
    for change in patch:
        assert change["op"] == "replace"
        *parents, last = change["path"].strip("/").split("/")
        part: Any = result
        for key in parents:
            part = part[int(key) if isinstance(part, list) else key]
        part[int(last)] = change["value"]
    return result


def change(volumes: PodMutator, thing: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
    before = copy.deepcopy(thing)
    found = patched(thing, volumes.mutate(thing, namespace).patch)
    assert thing == before
    assert found["metadata"] == before["metadata"]
    return found


def test_a_path_of_a_cache_becomes_an_inline_volume_of_it_with_the_performance_of_eci(
    volumes: PodMutator,
) -> None:
    found = change(volumes, pod("/models/llama"))["spec"]
    attributes = {"cacheBucket": "default", "cachePath": "/models/llama", "performanceLevel": "PL1"}
    assert found["volumes"] == [
        {"name": "v0", "csi": {"driver": DRIVER, "readOnly": True, "volumeAttributes": attributes}}
    ]
    assert found["containers"][0]["volumeMounts"] == [{"name": "v0", "mountPath": "/m0", "readOnly": True}]


def test_the_longest_path_wins_and_what_is_below_it_becomes_a_sub_path(volumes: PodMutator) -> None:
    found = change(volumes, pod("/models/llama//lora/adapter/", "/models/llama/tokenizer.json"))["spec"]
    assert [volume["csi"]["volumeAttributes"]["cachePath"] for volume in found["volumes"]] == [
        "/models/llama/lora",
        "/models/llama",
    ]
    assert [mount["subPath"] for mount in found["containers"][0]["volumeMounts"]] == [
        "adapter",
        "tokenizer.json",
    ]


def test_a_sub_path_of_the_mount_is_below_that_of_the_volume(volumes: PodMutator) -> None:
    assert (
        change(volumes, pod("/models/llama/a", subPath="b/c"))["spec"]["containers"][0]["volumeMounts"][0][
            "subPath"
        ]
        == "a/b/c"
    )
    mount = change(volumes, pod("/models/llama/$(A)", subPathExpr="$(POD)"))["spec"]["containers"][0][
        "volumeMounts"
    ][0]
    assert mount["subPathExpr"] == "$$(A)/$(POD)"
    assert "subPath" not in mount
    assert (
        change(volumes, pod("/models/llama", subPath="b"))["spec"]["containers"][0]["volumeMounts"][0][
            "subPath"
        ]
        == "b"
    )


def test_all_kinds_of_containers_are_looked_at(volumes: PodMutator) -> None:
    thing = pod("/models/llama/a")
    thing["spec"]["initContainers"] = [{"name": "none"}, copy.deepcopy(thing["spec"]["containers"][0])]
    found = change(volumes, thing)["spec"]
    assert found["initContainers"][1] == found["containers"][0]
    assert found["initContainers"][0] == {"name": "none"}


@pytest.mark.parametrize(
    "path", ["/models/llama-2", "/models", "/data", "/models/llama/../x", "models/llama", "/"]
)
def test_other_paths_are_left_alone(volumes: PodMutator, path: str) -> None:
    assert volumes.mutate(pod(path), "default").patch == []


@pytest.mark.parametrize(
    "thing", [{}, {"metadata": {}}, {"metadata": {"annotations": None}, "spec": {"volumes": None}}]
)
def test_pods_without_the_annotation_are_left_alone(volumes: PodMutator, thing: dict[str, Any]) -> None:
    assert volumes.mutate(thing, "default").patch == []
    assert volumes.mutate(pod("/models/llama", annotations={}), "default").patch == []


def test_another_bucket_has_other_caches(volumes: PodMutator) -> None:
    assert (
        volumes.mutate(pod("/models/llama", annotations={BUCKET_ANNOTATION: "other"}), "default").patch == []
    )


@pytest.mark.parametrize(
    ("asked", "attributes"),
    [
        ({"pl": "PL3"}, {"performanceLevel": "PL3"}),
        ({"provisionedIops": "40000"}, AUTOPL),
        (
            {"provisionedIops": "40000", "pl": "PL1", "burstingEnabled": "true"},
            {**AUTOPL, "burstingEnabled": "true"},
        ),
        ({"burstingEnabled": "true"}, {"performanceLevel": "AutoPL", "burstingEnabled": "true"}),
        ({"burstingEnabled": "false"}, {"performanceLevel": "PL1"}),
        ({"pl": " ", "other": "x"}, {"performanceLevel": "PL1"}),
    ],
)
def test_annotations_say_what_performance_each_volume_has(
    volumes: PodMutator, asked: Mapping[str, str], attributes: Mapping[str, str]
) -> None:
    annotations = {
        BUCKET_ANNOTATION: "default",
        **{f"k8s.aliyun.com/eci-data-cache-{key}": value for key, value in asked.items()},
    }
    for volume in change(volumes, pod("/models/llama", "/models/llama/lora", annotations=annotations))[
        "spec"
    ]["volumes"]:
        given = volume["csi"]["volumeAttributes"]
        assert {key: value for key, value in given.items() if not key.startswith("cache")} == attributes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pl", "PL9"),
        ("provisionedIops", "many"),
        ("burstingEnabled", "perhaps"),
        ("bucket", "eci-system"),
        ("bucket", "a b"),
    ],
)
def test_an_annotation_that_cannot_be_is_refused_by_name(volumes: PodMutator, name: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=f"eci-data-cache-{name}"):
        volumes.mutate(
            pod(
                "/models/llama",
                annotations={BUCKET_ANNOTATION: "default", f"k8s.aliyun.com/eci-data-cache-{name}": text},
            ),
            "default",
        )


def test_a_namespace_outside_the_grant_is_refused_with_the_way_out(volumes: PodMutator) -> None:
    assert volumes.mutate(pod("/secret"), "team").caches[0].spec.path == "/secret"
    with pytest.raises(
        PermissionDenied,
        match=r"not for namespace default; have its owner list the namespace in spec\.namespaces",
    ):
        volumes.mutate(pod("/secret"), "default")
