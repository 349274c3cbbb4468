"""CachePrewarm, on a real API server: what is no order is refused, in words that help."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from csi.parameters.volume_parameters import SPELLING
from csi.registry.prewarms.prewarms import NodePrewarmState, PrewarmedCache, PrewarmState
from csi.registry.prewarms.status import MAX_REPORTED_NODES, patch_with_node
from tests.apiserver import CRDS, ApiServer
from tests.csi.registry.prewarms.kinds import order, path, thing
from tests.deploy.test_crds import refusal

PARAMETERS = {"repoId": "org/model"}


def of(*caches: dict[str, Any], **more: Any) -> dict[str, Any]:
    whole = thing(order("one"))
    return {**whole, "spec": {"caches": list(caches), **more}}


REFUSED = {
    "no cache": (of(), "spec.caches in body should have at least 1 items"),
    "too many caches": (of(*[{"parameters": PARAMETERS}] * 17), "must have at most 16 items"),
    "a cache without a name": (
        of({"secretRef": {"name": "x"}}),
        "a cache is named by parameters, by claimName or by dataCache; give one of them",
    ),
    "a cache with two names": (of({"parameters": PARAMETERS, "claimName": "x"}), "give one of them"),
    "a credential": (
        of({"parameters": {"repoId": "x", "Token": "s3cr3t"}}),
        "is a credential; put it into a Secret and name that in secretRef",
    ),
    "no parameter": (of({"parameters": {}}), "should have at least 1 properties"),
    "a key that is too long": (
        of({"parameters": {"k" * 129: ""}}),
        "more than 128 characters; docs/parameters.md has all keys",
    ),
    "a Secret of another namespace": (
        of({"parameters": PARAMETERS, "secretRef": {"name": "x", "namespace": "y"}}),
        "unknown field",
    ),
    "a label that is none": (
        of({"parameters": PARAMETERS}, nodeSelector={"pool": "x" * 64}),
        "may not be more than 63",
    ),
    "an unknown key": (of({"parameters": PARAMETERS}, flavour="vanilla"), 'unknown field "spec.flavour"'),
}


@pytest.mark.parametrize(("what", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_order_is_refused_in_words_that_help(
    cluster: ApiServer, what: dict[str, Any], words: str
) -> None:
    said = refusal(cluster, what)
    assert words in said
    assert "s3cr3t" not in said


def test_an_order_is_taken(cluster: ApiServer) -> None:
    whole = of(
        {"parameters": PARAMETERS},
        {"claimName": "x", "secretRef": {"name": "y"}},
        nodeSelector={"pool": "gpu"},
        refresh="1",
    )
    assert refusal(cluster, whole) == ""


def test_the_largest_status_is_taken(cluster: ApiServer) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=of({"parameters": PARAMETERS}))
    made, status = order("one", PrewarmedCache(PARAMETERS)), dict[str, Any]()
    for number in range(MAX_REPORTED_NODES + 1):
        status |= (
            patch_with_node(
                made,
                status,
                f"{number:03}{'n' * 250}",
                NodePrewarmState(PrewarmState.FAILED, 99, "x" * 1000),
                1e9,
            )
            or {}
        )
    try:
        cluster.client().call(
            "PATCH",
            f"{path('default', 'one')}/status",
            {},
            {"status": status},
            "application/merge-patch+json",
        )
        assert (
            len(cluster.client().call("GET", path("default", "one"))["status"]["nodes"]) == MAX_REPORTED_NODES
        )
    finally:
        # Nodes of other tests would do as it says.
        cluster.kubectl("delete", "cacheprewarm", "one")


def test_the_schema_knows_the_credentials_that_the_code_knows_and_bounds_everything() -> None:
    (crd,) = yaml.safe_load_all((CRDS / "cacheprewarms.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    rule = schema["spec"]["properties"]["caches"]["items"]["properties"]["parameters"][
        "x-kubernetes-validations"
    ][0]["rule"]
    assert (
        set(json.loads(rule[rule.index("[") : rule.index("]") + 1].replace("'", '"')))
        == SPELLING.secret_names
    )
    assert schema["status"]["properties"]["nodes"]["maxItems"] == MAX_REPORTED_NODES
