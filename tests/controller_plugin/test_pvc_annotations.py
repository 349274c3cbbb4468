"""Volumes whose source the PVC names in annotations, as far as the StorageClass and the operator let it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csi.destinations.allow_list import PVC_ANNOTATIONS, AllowList
from csi.errors import (
    ClusterUnavailable,
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    PermissionDenied,
)
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.keys import KeySetter
from csi.parameters.dialects.table import DIALECTS
from csi.parameters.volume_parameters import KEYS, SPELLING, VOLUME_KEYS, parse_volume_parameters
from tests.controller_plugin.controller import HUB, Controller
from tests.controller_plugin.pvcs import FakeClaims

CLAIM = {
    "csi.storage.k8s.io/pvc/name": "models",
    "csi.storage.k8s.io/pvc/namespace": "team",
    "csi.storage.k8s.io/pv/name": "pvc-1",
}
CLASS = {"pvcAnnotations": "repoId, revision", "repoSource": "HuggingFace/Model", **CLAIM}
NAS_CLASS = {"pvcAnnotations": "path", "type": "NAS", "server": "nas", **CLAIM}


@pytest.fixture
def claims() -> FakeClaims:
    return FakeClaims()


@pytest.fixture
def controller(tmp_path: Path, claims: FakeClaims) -> Controller:
    return Controller(
        tmp_path, claims, AllowList(["nas:/share/models"], ["files.example.com"], PVC_ANNOTATIONS)
    )


def annotate(claims: FakeClaims, **keys: str) -> None:
    claims.put(
        "team",
        "models",
        {"kubernetes.io/x": "y", **{f"datacache.csi.io/{key}": value for key, value in keys.items()}},
    )


def refusal(
    controller: Controller, parameters: dict[str, str], kind: type[DataCacheError] = InvalidParameter
) -> str:
    with pytest.raises(kind) as error:
        controller.create(parameters=parameters)
    assert controller.registry.list_page("", 0) == []
    assert controller.source.asked == []
    return str(error.value)


def test_a_claim_names_the_repository_and_the_volume_says_whose_word_it_is(
    controller: Controller, claims: FakeClaims
) -> None:
    annotate(claims, repoid="org/one", revision="v1")
    record = controller.create(parameters=CLASS)
    assert record.requested_spec.source == HubSpec("HuggingFace/Model", "org/one", "v1")
    assert parse_volume_parameters(record.to_context()).spec.untrusted
    assert record.to_context()["namedBy"] == "pod"
    assert {operation.spec.to_context()["namedBy"] for operation in controller.source.asked} == {"pod"}
    assert controller.create(parameters=CLASS) == record


def test_an_annotation_counts_over_what_the_class_says(controller: Controller, claims: FakeClaims) -> None:
    annotate(claims, repoId="org/one")
    assert controller.create(parameters=CLASS | {"revision": "v1"}).requested_spec.source.revision == "v1"  # type: ignore[union-attr]
    annotate(claims, repoId="org/one", revision="v2")
    assert (
        controller.create(parameters=CLASS | {"revision": "v1"}, name="pvc-2").requested_spec.source.revision
        == "v2"
    )  # type: ignore[union-attr]


def test_a_class_without_the_list_reads_no_claim_and_stays_an_administrators_word(
    controller: Controller, claims: FakeClaims
) -> None:
    claims.away = True
    assert not controller.create(parameters=HUB | CLAIM).requested_spec.untrusted


def test_annotations_that_name_no_source_leave_it_an_administrators_word(
    controller: Controller, claims: FakeClaims
) -> None:
    annotate(claims, bandwidthLimit="5Mi")
    record = controller.create(parameters=HUB | CLAIM | {"pvcAnnotations": "bandwidthLimit"})
    assert record.requested_spec.bandwidth_limit == 5 * 2**20
    assert not record.requested_spec.untrusted


def test_an_annotation_that_the_class_does_not_list_is_refused_by_name_with_the_fix(
    controller: Controller, claims: FakeClaims
) -> None:
    annotate(claims, repoId="org/one", allowPatterns="*")
    said = refusal(controller, CLASS)
    assert "PVC team/models has the annotation 'datacache.csi.io/allowPatterns'" in said
    assert "pvcAnnotations there lists repoId, revision" in said
    assert "add allowPatterns to pvcAnnotations" in said
    annotate(claims, repoId="org/one", flavour="x")
    assert "'datacache.csi.io/flavour', which is not a key of this driver" in refusal(controller, CLASS)


def test_what_is_missing_is_named_as_an_annotation(controller: Controller, claims: FakeClaims) -> None:
    annotate(claims, revision="v1")
    assert "repoId is missing" in (said := refusal(controller, CLASS))
    assert "give it the annotation datacache.csi.io/repoId" in said
    annotate(claims)
    assert "PVC team/models: give it the annotation datacache.csi.io/path" in refusal(controller, NAS_CLASS)


@pytest.mark.parametrize("key", sorted(SPELLING.secret_names))
def test_a_credential_is_refused_and_not_repeated(
    controller: Controller, claims: FakeClaims, key: str
) -> None:
    annotate(claims, repoId="org/one", **{key: "s3cr3t"})
    said = refusal(controller, CLASS)
    assert f"datacache.csi.io/{key}" in said
    assert "is a credential" in said
    assert "s3cr3t" not in said
    assert "is a credential" in refusal(controller, CLASS | {"pvcAnnotations": f"repoId,{key}"})


OTHERS = {
    key.name
    for dialect in DIALECTS
    for key in (*dialect.keys, *VOLUME_KEYS)
    if key.setter is not KeySetter.ANYONE
} | {"writerAccessModes"}


@pytest.mark.parametrize("key", sorted(OTHERS))
def test_what_only_an_administrator_may_set_can_be_no_annotation(
    controller: Controller, claims: FakeClaims, key: str
) -> None:
    assert {"egressProfile", "pvcAnnotations", "namedBy", "ramRole", "size"} < OTHERS
    annotate(claims, repoId="org/one")
    assert f"pvcAnnotations lists {key}, which only an administrator may set" in refusal(
        controller, CLASS | {"pvcAnnotations": f"repoId,{key}"}
    )
    annotate(claims, repoId="org/one", **{key: "x"})
    assert f"'datacache.csi.io/{key}', which its StorageClass does not allow" in refusal(controller, CLASS)


@pytest.mark.parametrize("listed", ["", " , ", "csi.storage.k8s.io/pvc/name", "repoIdd"])
def test_a_list_of_no_keys_is_refused(controller: Controller, claims: FakeClaims, listed: str) -> None:
    annotate(claims)
    assert "pvcAnnotations lists" in refusal(controller, CLASS | {"pvcAnnotations": listed})


def test_an_export_has_to_be_on_the_operators_list(controller: Controller, claims: FakeClaims) -> None:
    annotate(claims, path="/share/secret")
    said = refusal(controller, NAS_CLASS, PermissionDenied)
    assert "annotations of a PVC may not name NAS nas:/share/secret" in said
    assert "controller plugin with --allow-inline-nas nas:/share/secret" in said
    annotate(claims, path="/share/models/llama")
    assert (
        controller.create(parameters=NAS_CLASS).requested_spec.source.display_name
        == "NAS nas:/share/models/llama"
    )


def test_a_host_has_to_be_on_the_operators_list(controller: Controller, claims: FakeClaims) -> None:
    annotate(claims, url="http://169.254.169.254/latest")
    listed = {"pvcAnnotations": "url", **CLAIM}
    assert "controller plugin with --allow-origins 169.254.169.254" in refusal(
        controller, listed, PermissionDenied
    )
    annotate(claims, url="https://files.example.com/a")
    assert controller.create(parameters=listed).requested_spec.untrusted


def test_within_sources_that_a_claim_names_no_key_of_an_administrators_stands(
    controller: Controller, claims: FakeClaims
) -> None:
    bucket = {
        "folder": "b",
        "type": "OSS",
        "bucket": "bucket",
        "url": "files.example.com",
        "pathStyle": "true",
    }
    listed = {"pvcAnnotations": "sources", **CLAIM}
    annotate(claims, sources=json.dumps([{"folder": "a", "server": "nas", "path": "/x"}]))
    assert "NAS nas:/x" in refusal(controller, listed, PermissionDenied)
    annotate(claims, sources=json.dumps([{**bucket, "ramRole": "node"}]))
    assert "ramRole is not for annotations of a PVC: only an administrator" in refusal(
        controller, listed, PermissionDenied
    )
    annotate(claims, sources=json.dumps([bucket]))
    assert controller.create(parameters=listed).requested_spec.untrusted


def test_an_administrators_key_of_the_class_stays_beside_annotations(
    controller: Controller, claims: FakeClaims
) -> None:
    annotate(claims, repoId="org/one")
    assert (
        controller.create(parameters=CLASS | {"egressProfile": "slow"}).requested_spec.egress_profile
        == "slow"
    )


def test_without_the_claims_name_the_message_says_which_flag_is_missing(controller: Controller) -> None:
    for key in CLAIM.keys() - {"csi.storage.k8s.io/pv/name"}:
        said = refusal(
            controller, {name: value for name, value in CLASS.items() if name != key}, FailedPrecondition
        )
        assert "external-provisioner with --extra-create-metadata" in said


def test_without_a_cluster_the_message_says_which_flag_is_missing(tmp_path: Path) -> None:
    assert "--registry kubernetes" in refusal(Controller(tmp_path), CLASS, FailedPrecondition)


def test_a_cluster_that_is_away_is_asked_again(controller: Controller, claims: FakeClaims) -> None:
    annotate(claims, repoId="org/one")
    claims.away = True
    refusal(controller, CLASS, ClusterUnavailable)
    claims.away = False
    controller.create(parameters=CLASS)


def test_a_clone_stays_the_word_of_whom_it_was(controller: Controller, claims: FakeClaims) -> None:
    annotate(claims, repoId="org/one")
    first = controller.create(parameters=CLASS)
    annotate(claims)
    clone = controller.create(
        name="pvc-2", parameters={"pvcAnnotations": "repoId", **CLAIM}, source_volume_id=first.id
    )
    assert clone.spec == first.spec
    assert clone.spec.untrusted


@pytest.mark.parametrize("where", ["static PV", "inline volume"])
def test_the_list_is_for_storage_classes_alone(where: str) -> None:
    assert KEYS["pvcAnnotations"].setter is KeySetter.CLASS
    with pytest.raises(InvalidParameter, match="pvcAnnotations is only for a StorageClass"):
        parse_volume_parameters({**HUB, "pvcAnnotations": "repoId"})
