"""Every example, in deploy/ and in the README, is what Kubernetes and the driver take."""

from __future__ import annotations

import pytest

from csi.settings import DRIVER_NAME
from csi.spec import access_modes
from csi.spec.access_modes import AccessMode
from csi.spec.parameters import parse
from node_plugin.inline_policy import InlinePolicy
from tests.deploy.objects import DRIVER, Asked, asked, objects

ASKED = list(asked())
OBJECTS = list(objects())


@pytest.mark.parametrize("example", ASKED, ids=lambda example: example.name)
def test_the_parameters_of_an_example_parse(example: Asked) -> None:
    assert all(isinstance(value, str) for value in example.parameters.values()), "Kubernetes takes strings only; quote numbers and booleans"
    parsed = parse(example.parameters, example.flags)
    for mode in example.modes:
        access_modes.check({"ReadOnlyMany": AccessMode.MULTI_NODE_READER_ONLY}[mode], parsed.downgrade_writers)
    if example.inline:
        InlinePolicy(["nas.example.com:/share/models"]).check(parsed)


def test_the_examples_show_every_kind_of_volume_with_every_source() -> None:
    shown = {(example.name.split(":")[-1].split("/")[0], type(parse(example.parameters).spec.source).__name__) for example in ASKED}
    assert shown == {(kind, source) for kind in ("StorageClass", "PersistentVolume", "Pod") for source in ("HubSpec", "NasSpec")}


@pytest.mark.parametrize(("name", "thing"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_an_example_names_this_driver(name: str, thing: dict) -> None:
    assert DRIVER == DRIVER_NAME
    spec = thing.get("spec", {})
    drivers = {"StorageClass": [thing.get("provisioner")], "PersistentVolume": [spec.get("csi", {}).get("driver")]}
    inline = [volume["csi"]["driver"] for volume in spec.get("volumes", []) if "csi" in volume] if thing["kind"] == "Pod" else []
    assert set(drivers.get(thing["kind"], inline)) <= {DRIVER}


def test_claims_and_secrets_that_examples_name_exist() -> None:
    deployed = [thing for name, thing in OBJECTS if name.startswith("deploy/")]
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in deployed}
    wanted = set()
    for thing in deployed:
        spec = thing.get("spec", {})
        if thing["kind"] == "Pod":
            wanted |= {("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"]) for v in spec["volumes"] if "csi" not in v}
            wanted |= {("Secret", v["csi"]["nodePublishSecretRef"]["name"]) for v in spec["volumes"] if "nodePublishSecretRef" in v.get("csi", {})}
        if thing["kind"] == "PersistentVolumeClaim" and spec["storageClassName"]:
            wanted.add(("StorageClass", spec["storageClassName"]))
        if thing["kind"] == "PersistentVolumeClaim" and "volumeName" in spec:
            wanted.add(("PersistentVolume", spec["volumeName"]))
        if thing["kind"] == "StorageClass":
            wanted |= {("Secret", value) for key, value in thing["parameters"].items() if key.endswith("-secret-name")}
        if "nodeStageSecretRef" in spec.get("csi", {}):
            wanted.add(("Secret", spec["csi"]["nodeStageSecretRef"]["name"]))
    assert wanted <= names


def test_the_driver_object_says_what_the_driver_needs() -> None:
    (driver,) = (thing for _, thing in OBJECTS if thing["kind"] == "CSIDriver")
    assert driver["metadata"]["name"] == DRIVER
    assert driver["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": True,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"],
        "fsGroupPolicy": "None",
        "seLinuxMount": False,
        "storageCapacity": False,
    }
