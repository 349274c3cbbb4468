"""Every example, in deploy/ and in the README, is what Kubernetes and the driver take."""

from __future__ import annotations

import pytest

from csi.destinations.allow_list import CACHE_PREWARMS, PVC_ANNOTATIONS, AllowList
from csi.parameters import access_modes
from csi.parameters.access_modes import AccessMode
from csi.parameters.performance_keys import Performance, compute_limits
from csi.parameters.volume_parameters import parse_mutable, parse_volume_parameters
from csi.program.flags import DRIVER_NAME, parse_size
from tests.deploy.objects import DRIVER, Asked, asked, objects, pod_volumes

ASKED = list(asked())
OBJECTS = list(objects())


@pytest.mark.parametrize("example", ASKED, ids=lambda example: example.name)
def test_the_parameters_of_an_example_parse(example: Asked) -> None:
    assert all(isinstance(value, str) for value in example.parameters.values()), (
        "Kubernetes takes strings only; quote numbers and booleans"
    )
    parsed = parse_volume_parameters(example.parameters, example.flags)
    for mode in example.modes:
        access_modes.check_access_mode(
            {"ReadOnlyMany": AccessMode.MULTI_NODE_READER_ONLY}[mode], parsed.downgrade_writers
        )
    if example.by_user:
        AllowList(["nas.example.com:/share/models"], policy_subject=PVC_ANNOTATIONS).check_source(
            parsed.spec.source
        )
    if example.inline:
        AllowList(["nas.example.com:/share/models"], ["files.example.com"]).check(parsed)


def deployed(kind: str, file: str = "") -> list[dict]:
    return [thing for name, thing in OBJECTS if thing["kind"] == kind and name.startswith(file)]


@pytest.mark.parametrize("file", sorted({name.partition(":")[0] for name, _ in OBJECTS}))
def test_each_claim_has_the_size_that_its_classes_need(file: str) -> None:
    """Those of the claim, and every class of attributes beside it, which it can be changed to."""
    classes = {
        example.name.rpartition("/")[2]: parse_volume_parameters(example.parameters).performance
        for example in ASKED
        if example.name.partition(":")[0] == file and ":StorageClass/" in example.name
    }
    changes = [thing["parameters"] for thing in deployed("VolumeAttributesClass", file)]
    for claim in [
        thing["spec"]
        for thing in deployed("PersistentVolumeClaim", file)
        if thing["spec"]["storageClassName"]
    ]:
        given, capacity = (
            classes[claim["storageClassName"]],
            parse_size(claim["resources"]["requests"]["storage"]),
        )
        compute_limits(given, capacity)
        for change in changes:
            compute_limits(parse_mutable(change, given), capacity)


def test_the_examples_show_bought_performance_and_plain_ceilings_that_change() -> None:
    changes = [
        parse_mutable(thing["parameters"], Performance()) for thing in deployed("VolumeAttributesClass")
    ]
    assert [change for change in changes if change.provisioned_iops]
    assert [change for change in changes if change.read_iops]


def test_an_inline_example_has_limits_that_nothing_lowers() -> None:
    inline = [parse_volume_parameters(example.parameters) for example in ASKED if example.inline]
    limited = [
        found
        for asks in inline
        if (found := compute_limits(asks.performance, asks.size_bytes or 0, clamp=True))
    ]
    assert limited
    assert not [found.notes for found in limited if found.notes]


def test_the_examples_show_every_kind_of_volume_with_every_source() -> None:
    shown = {
        (
            example.name.split(":")[-1].split("/")[0],
            type(parse_volume_parameters(example.parameters).spec.source).__name__,
        )
        for example in ASKED
    }
    first = {
        (kind, source)
        for kind in ("StorageClass", "PersistentVolume", "Pod")
        for source in ("HubSpec", "NasSpec")
    }
    others = {("StorageClass", source) for source in ("BucketSpec", "UrlSpec", "CompositeSpec")}
    assert shown == first | others | {("Pod", "UrlSpec")}


@pytest.mark.parametrize(("name", "thing"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_an_example_names_this_driver(name: str, thing: dict) -> None:
    assert DRIVER == DRIVER_NAME
    spec = thing.get("spec", {})
    drivers = {
        "StorageClass": [thing.get("provisioner")],
        "VolumeAttributesClass": [thing.get("driverName")],
        "PersistentVolume": [spec.get("csi", {}).get("driver")],
    }
    inline = [volume["csi"]["driver"] for volume in pod_volumes(thing) if "csi" in volume]
    assert set(drivers.get(thing["kind"], inline)) <= {DRIVER}


def test_claims_and_secrets_that_examples_name_exist() -> None:
    deployed = [thing for name, thing in OBJECTS if name.startswith("deploy/")]
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in deployed}
    wanted = set()
    for thing in deployed:
        spec = thing.get("spec", {})
        volumes = pod_volumes(thing)
        wanted |= {
            ("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"])
            for v in volumes
            if "csi" not in v
        }
        wanted |= {
            ("Secret", v["csi"]["nodePublishSecretRef"]["name"])
            for v in volumes
            if "nodePublishSecretRef" in v.get("csi", {})
        }
        if thing["kind"] == "PersistentVolumeClaim" and spec["storageClassName"]:
            wanted.add(("StorageClass", spec["storageClassName"]))
        if thing["kind"] == "PersistentVolumeClaim" and "volumeAttributesClassName" in spec:
            wanted.add(("VolumeAttributesClass", spec["volumeAttributesClassName"]))
        if thing["kind"] == "PersistentVolumeClaim" and "volumeName" in spec:
            wanted.add(("PersistentVolume", spec["volumeName"]))
        if thing["kind"] == "StorageClass":
            wanted |= {
                ("Secret", value)
                for key, value in thing["parameters"].items()
                if key.endswith("-secret-name")
            }
        if "nodeStageSecretRef" in spec.get("csi", {}):
            wanted.add(("Secret", spec["csi"]["nodeStageSecretRef"]["name"]))
    assert wanted <= names


def test_a_model_server_waits_for_nothing() -> None:
    pods = [thing["spec"]["template"]["spec"] for thing in deployed("Deployment")]
    assert pods
    for pod in pods:
        assert "initContainers" not in pod
        assert all("command" not in container for container in pod["containers"])


def test_what_an_example_prewarms_parses_as_a_users_word_and_names_what_is_there() -> None:
    names = {(thing["kind"], thing["metadata"]["name"]) for _, thing in OBJECTS}
    caches = [cache for thing in deployed("CachePrewarm") for cache in thing["spec"]["caches"]]
    assert {"claimName", "parameters"} <= {key for cache in caches for key in cache}
    for cache in caches:
        assert "secretRef" not in cache or ("Secret", cache["secretRef"]["name"]) in names
        if "claimName" in cache:
            assert ("PersistentVolumeClaim", cache["claimName"]) in names
        else:
            AllowList(policy_subject=CACHE_PREWARMS).check(parse_volume_parameters(cache["parameters"]))
