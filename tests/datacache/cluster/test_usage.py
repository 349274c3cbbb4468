"""`datacache doctor --cluster` names what is wrong with classes, Secrets, claims, pods and caches: each is
broken here alone."""

from __future__ import annotations

import json

import pytest

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.registry.volumes.codec import encode
from csi.registry.volumes.record import VolumeRecord
from tests.apiserver import STRANGER
from tests.datacache.cluster.well_cluster import CLASSES, DRIVER, Cluster, Thing, condition
from tests.origins.onc_rpc import wait_until

HUB = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main"))
INLINE: Thing = {"csi": {"driver": DRIVER, "volumeAttributes": {"repoId": "org/name"}}}
BUCKET = {
    "repoId": "",
    "repoSource": "",
    "type": "S3",
    "bucket": "models",
    "endpoint": "https://s3.example.com",
}
STAGE = "csi.storage.k8s.io/node-stage-secret-{}"
NAMED = {STAGE.format("name"): "hub", STAGE.format("namespace"): "default"}
FAILED = 'MountVolume.SetUp failed for volume "{}" : rpc error: code = {} desc = {}'


def test_what_people_have_made_is_well(well: Cluster) -> None:
    well.secret("hub", token="hush")
    well.storage_class(**NAMED)
    attributes_class(well, readIops="500")
    well.claim("waits")
    well.pod("runs", INLINE)
    done = well.examine()
    assert done.status == 0
    assert done.wrong() == []
    assert "hush" not in json.dumps(done.found)
    said = {one.check: one.what for one in done.found}
    assert said["StorageClasses"] == "all 1 of the driver's are valid" == said["VolumeAttributesClasses"]
    assert said["Secrets"] == "1 Secret of StorageClasses hold the keys of their sources"
    assert said["PVCs"] == "0 PVCs bound, 1 waiting without a warning"
    assert said["pods"] == "1 pod with volumes of the driver, 0 waiting for a fill, none with another warning"


# Classes.


def attributes_class(cluster: Cluster, **parameters: str) -> None:
    thing = {"metadata": {"name": "fast"}, "driverName": DRIVER, "parameters": parameters}
    cluster.made(
        "/apis/storage.k8s.io/v1/volumeattributesclasses", thing, "storage.k8s.io/v1", "VolumeAttributesClass"
    )


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"revison": "main"}, "class: unknown parameter 'revison'; did you mean revision?"),
        ({"token": "hush"}, "class: token is a credential and does not belong in parameters"),
        ({"repoId": "org name"}, "class: repoId is 'org name'"),
        ({"pvcAnnotations": "repoId,egressProfile"}, "class: pvcAnnotations lists egressProfile"),
        ({"provisionedIops": "many"}, "class: provisionedIops"),
    ],
)
def test_a_storage_class_that_the_driver_does_not_understand(
    well: Cluster, parameters: dict[str, str], words: str
) -> None:
    well.storage_class(**parameters)
    found = well.examine().only("StorageClasses", "fault")
    assert words in found.what
    assert "again" in found.fix
    assert "hush" not in found.what


def test_mount_options_that_the_driver_does_not_understand(well: Cluster) -> None:
    nas = {"server": "nas.example.com", "path": "/models"}
    thing = {
        "metadata": {"name": "nas"},
        "provisioner": DRIVER,
        "parameters": nas,
        "mountOptions": ["vers=banana"],
    }
    well.made(CLASSES, thing, "storage.k8s.io/v1", "StorageClass")
    assert "nas: " in well.examine().only("StorageClasses", "fault").what


def test_classes_whose_source_is_named_elsewhere_are_good(well: Cluster) -> None:
    well.storage_class("annotated", repoId="", repoSource="", pvcannotations="repoId,revision")
    well.storage_class("clones", repoId="", repoSource="", readIops="500")
    assert well.examine().of("StorageClasses").what == "all 2 of the driver's are valid"


def test_a_volume_attributes_class_that_fits_no_volume(well: Cluster) -> None:
    attributes_class(well, revision="v2")
    found = well.examine().only("VolumeAttributesClasses", "fault")
    assert "fast: revision cannot be changed on a volume" in found.what
    assert "again" in found.fix


# Secrets.


@pytest.mark.parametrize(
    ("source", "data", "words"),
    [
        ({}, None, "it does not exist"),
        ({}, {}, "it is empty"),
        ({}, {"token": " "}, "it is empty"),
        ({}, {"password": "hush"}, "the Secret of this volume has none of the keys token"),
        ({}, {"token": "hush\nhush"}, "the Secret's `token` contains a line end"),
        (
            BUCKET,
            {"accessKeyId": "hush"},
            "the Secret of this volume does not have both accessKeyId and secretAccessKey",
        ),
        (
            {"repoId": "", "repoSource": "", "pvcAnnotations": "repoId"},
            {"password": "hush"},
            "it has none of the keys",
        ),
    ],
)
def test_a_secret_that_is_not_there_or_holds_no_credential(
    well: Cluster, source: dict[str, str], data: dict[str, str] | None, words: str
) -> None:
    well.storage_class(**source, **NAMED)
    if data is not None:
        well.secret("hub", **data)
    found = well.examine().only("Secrets", "fault")
    assert f"StorageClass class names the Secret default/hub: {words}" in found.what
    assert "secret.yaml" in found.fix
    assert "hush" not in json.dumps(found)


def test_a_secret_of_several_sources_is_looked_at_for_each(well: Cluster) -> None:
    bucket = {"folder": "b", **{key: value for key, value in BUCKET.items() if value}}
    sources = json.dumps([{"folder": "a", "repoId": "org/name"}, bucket])
    well.storage_class(repoId="", repoSource="", sources=sources, **NAMED)
    well.secret("hub", **{"a.token": "hush", "b.accessKeyId": "hush"})
    assert (
        "default/hub: b: the Secret of this volume does not have both"
        in well.examine().only("Secrets", "fault").what
    )


def test_a_secret_without_its_namespace(well: Cluster) -> None:
    well.storage_class(**{STAGE.format("name"): "hub"})
    assert "both its name and its namespace must be given" in well.examine().only("Secrets", "fault").what


def test_a_secret_that_each_claim_names_is_not_looked_for(well: Cluster) -> None:
    well.storage_class(**{STAGE.format("name"): "${pvc.name}", STAGE.format("namespace"): "${pvc.namespace}"})
    assert "Secrets" not in {one.check for one in well.examine().found}
    assert well.examine().wrong() == []


def test_who_may_not_read_secrets_is_told_that_they_were_not_looked_at(well: Cluster) -> None:
    well.storage_class(**NAMED)
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["list"]}]
    well.made(
        f"/apis/{group}/v1/clusterroles",
        {"metadata": {"name": "classes"}, "rules": rules},
        f"{group}/v1",
        "ClusterRole",
    )
    subjects = [{"kind": "User", "apiGroup": group, "name": STRANGER}]
    binding = {
        "metadata": {"name": "classes"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "classes"},
        "subjects": subjects,
    }
    well.made(f"/apis/{group}/v1/clusterrolebindings", binding, f"{group}/v1", "ClusterRoleBinding")
    can = "can-i", "list", "storageclasses", f"--as={STRANGER}"
    assert wait_until(lambda: "yes" in well.server.kubectl("auth", *can), 60)
    (found,) = [one for one in well.examine(user=STRANGER).found if one.check == "Secrets"]
    assert found.verdict == "warning"
    assert 'cannot get resource "secrets"' in found.what
    assert found.fix


# Claims.


def test_a_claim_that_waits_with_a_complaint(well: Cluster) -> None:
    well.storage_class()
    made = well.claim("waits")
    well.event(made, "PersistentVolumeClaim", "ProvisioningFailed", "what was wrong before", age=600)
    well.event(made, "PersistentVolumeClaim", "ProvisioningFailed", "the hub does not know org/name")
    found = well.examine().only("PVCs", "fault")
    assert "default/waits is Pending: ProvisioningFailed: the hub does not know org/name" in found.what
    assert "describe pvc waits" in found.fix


def test_claims_that_wait_for_a_resolve_or_are_of_another_driver_are_good(well: Cluster) -> None:
    well.storage_class()
    well.event(
        well.claim("waits"),
        "PersistentVolumeClaim",
        "ProvisioningFailed",
        "rpc error: code = Aborted desc = being resolved",
    )
    well.event(
        well.claim("other", "elsewhere"), "PersistentVolumeClaim", "ProvisioningFailed", "no such class"
    )
    assert well.examine().of("PVCs").what == "0 PVCs bound, 1 waiting without a warning"


def test_of_many_complaints_the_first_are_told_and_the_rest_counted(well: Cluster) -> None:
    well.storage_class()
    for number in range(12):
        well.event(well.claim(f"waits-{number}"), "PersistentVolumeClaim", "ProvisioningFailed", "no")
    found = [one for one in well.examine().found if one.check == "PVCs"]
    assert len(found) == 11
    assert found[-1].what == "and 2 more"
    assert {one.verdict for one in found} == {"fault"}


# Pods.


def volume_of(cluster: Cluster, claim: str) -> str:
    """A PV of the driver's that a claim is bound to, as far as the PV says; its name."""
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadOnlyMany"],
        "csi": {"driver": DRIVER, "volumeHandle": f"dc-{claim}"},
        "claimRef": {"namespace": "default", "name": claim},
    }
    cluster.made(
        "/api/v1/persistentvolumes",
        {"metadata": {"name": f"pvc-{claim}"}, "spec": spec},
        "v1",
        "PersistentVolume",
    )
    return f"pvc-{claim}"


TEMPLATE = {"spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}}
KINDS: dict[str, tuple[Thing, str]] = {
    "inline": (INLINE, ""),
    "of a claim": ({"persistentVolumeClaim": {"claimName": "c"}}, "c"),
    "of a claim of its own": ({"ephemeral": {"volumeClaimTemplate": TEMPLATE}}, "waits-v"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_that_cannot_have_its_volume(well: Cluster, kind: str) -> None:
    volume, claim = KINDS[kind]
    name = volume_of(well, claim) if claim else "v"
    made = well.pod("waits", volume)
    well.event(made, "Pod", "FailedMount", FAILED.format(name, "Unavailable", "the NAS refuses"), age=60)
    well.event(
        made, "Pod", "FailedMount", "Unable to attach or mount volumes: timed out waiting for the condition"
    )
    found = well.examine().only("pods", "fault")
    assert "default/waits does not start: FailedMount: " in found.what
    assert found.what.endswith("the NAS refuses")
    assert "describe pod waits" in found.fix
    assert "troubleshooting" in found.fix


def test_pods_that_wait_for_a_fill_or_for_a_volume_of_somebody_else_are_good(well: Cluster) -> None:
    well.event(well.pod("fills", INLINE), "Pod", "FailedMount", FAILED.format("v", "Aborted", "5 of 80 GiB"))
    well.event(
        well.pod("waits", INLINE),
        "Pod",
        "FailedMount",
        FAILED.format("config", "NotFound", 'configmap "c" not found'),
    )
    well.event(
        well.pod("other", {"emptyDir": {}}), "Pod", "FailedMount", FAILED.format("v", "Internal", "no")
    )
    assert (
        well.examine().of("pods").what
        == "2 pods with volumes of the driver, 1 waiting for a fill, none with another warning"
    )


# Caches.


def test_a_prewarm_that_fails(well: Cluster) -> None:
    path = "/apis/datacache.csi.io/v1alpha1/namespaces/default/cacheprewarms"
    well.made(
        path,
        {"metadata": {"name": "p"}, "spec": {"caches": [{"claimName": "c"}]}},
        "datacache.csi.io/v1alpha1",
        "CachePrewarm",
    )
    assert well.examine().of("caches").what == "0 CacheVolumes and 1 CachePrewarm, none with errors"
    well.status(
        f"{path}/p", {"conditions": [condition("Failed", reason="NodesFail", message="one: no space")]}
    )
    assert "CachePrewarm default/p: one: no space" in well.examine().only("caches", "warning").what


def test_a_data_cache_that_failed(well: Cluster) -> None:
    path, spec = (
        "/apis/eci.aliyun.com/v1alpha1/datacaches",
        {"path": "/a", "dataSource": {"type": "URL", "options": {"repoId": "org/name"}}},
    )
    well.made(path, {"metadata": {"name": "d"}, "spec": spec}, "eci.aliyun.com/v1alpha1", "DataCache")
    assert well.examine().of("DataCaches").what == "1 DataCache, none failed"
    well.status(f"{path}/d", {"status": "Failed", "message": "the hub is gone"})
    assert "DataCache d is Failed: the hub is gone" in well.examine().only("DataCaches", "warning").what


def test_a_cache_volume_that_cannot_be_read(well: Cluster) -> None:
    path = "/apis/datacache.csi.io/v1alpha1/cachevolumes"
    thing = encode(VolumeRecord("dc-1", "pvc-1", HUB, HUB, "a" * 64, 2**30, 5, created_at=1.5))
    well.made(path, thing, thing["apiVersion"], thing["kind"])
    well.status(
        f"{path}/dc-1", {"conditions": [condition("Resolved", "False", "Unreadable", "unknown key x")]}
    )
    assert "CacheVolume dc-1: unknown key x" in well.examine().only("caches", "fault").what
