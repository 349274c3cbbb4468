"""DataCache, on a real API server: what is no cache is refused, in words that help.

What the operator writes is taken.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from csi.parameters.data_cache import parse_data_cache
from csi.registry.datacaches.codec import encode_status
from csi.registry.datacaches.data_caches import (
    DataCache,
    DataCacheContent,
    DataCacheEvent,
    DataCacheState,
    Phase,
)
from tests.apiserver import DATA_CACHES, ApiServer
from tests.deploy.test_crds import refusal

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
VALID: dict[str, Any] = {
    "apiVersion": "eci.aliyun.com/v1alpha1",
    "kind": "DataCache",
    "metadata": {"name": "one"},
    "spec": {"path": "/models/one/", "dataSource": {"type": "URL", "options": HUB}},
}


def of(**spec: Any) -> dict[str, Any]:
    whole = copy.deepcopy(VALID)
    whole["spec"].update(spec)
    whole["spec"] = {key: value for key, value in whole["spec"].items() if value is not None}
    return whole


def source(type: str, **options: str) -> dict[str, Any]:
    return of(dataSource={"type": type, "options": options})


REFUSED = {
    "no path": (of(path=None), "spec.path: Required value"),
    "no source": (of(dataSource=None), "spec.dataSource: Required value"),
    "the root": (of(path="/"), "spec.path"),
    "a relative path": (
        of(path="models/one"),
        "path has to be an absolute path below /, such as /models/llama",
    ),
    "a path that leads up": (of(path="/models/../one"), "without '.' and '..'"),
    "a reserved bucket": (of(bucket="eci-system"), "bucket eci-system is reserved"),
    "a bucket that is none": (of(bucket="a b"), "spec.bucket"),
    "no size": (of(size=0), "spec.size in body should be greater than or equal to 1"),
    "a size that is too large": (of(size=40_000), "should be less than or equal to 32768"),
    "no days": (of(retentionDays=0), "spec.retentionDays"),
    "an unknown type": (source("DISK"), "dataSource.type is one of URL, NAS, OSS, S3 and SNAPSHOT"),
    "a snapshot without an id": (source("SNAPSHOT"), "a SNAPSHOT has the option snapshotId"),
    "an id that is none": (source("SNAPSHOT", snapshotId="s-1"), "s- and 20 hex digits"),
    "an unknown key": (of(flavour="vanilla"), 'unknown field "spec.flavour"'),
    "a number among the options": (
        of(dataSource={"type": "NAS", "options": {"vers": 3}}),
        "must be of type string",
    ),
    "two tags of one key": (of(tags=[{"key": "a"}, {"key": "a"}]), "Duplicate value"),
}


@pytest.mark.parametrize(("what", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_cache_is_refused_in_words_that_help(
    cluster: ApiServer, what: dict[str, Any], words: str
) -> None:
    assert words in refusal(cluster, what)


TAKEN = {
    "as the article has it": of(vSwitchId="vsw-1", securityGroupId="sg-1"),
    "as the documentation has it": of(
        bucket="b", size=20, retentionDays=7, netConfig={"securityGroupId": "sg-1", "vSwitchId": "vsw-1"}
    ),
    "lower case": source("nas", server="nas.example.com", path="/a"),
    "a snapshot": source("SNAPSHOT", snapshotId="s-" + "0a" * 10),
    "all of it": of(
        namespaces=["a"],
        nodeSelector={"pool": "x"},
        name="n",
        tags=[{"key": "a", "value": "b"}, {"key": "c"}],
        refresh="1",
    ),
}


@pytest.mark.parametrize("what", TAKEN.values(), ids=TAKEN)
def test_what_is_a_cache_is_taken(cluster: ApiServer, what: dict[str, Any]) -> None:
    assert refusal(cluster, what) == ""


def test_its_name_cannot_change(cluster: ApiServer) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=VALID)
    assert "path cannot change" in refusal(cluster, of(path="/models/two"))
    assert "bucket cannot change" in refusal(cluster, of(bucket="other"))
    assert refusal(cluster, of(size=40)) == ""


def test_people_see_the_columns_that_they_know_and_the_largest_status_is_taken(cluster: ApiServer) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=VALID)
    made = DataCache("one", "u", 1, 1e9, parse_data_cache("", "/models/one", "URL", HUB))
    content = DataCacheContent("a" * 64, {"url": "u" * 200_000}, 2**44, 2**44)
    notes = tuple(DataCacheEvent("Warning", "Failed", "x" * 4000, 9, 1e9, 1e9) for _ in range(16))
    state = DataCacheState(Phase.UPDATING, 40, 1, content, content, True, "x" * 5000, 2e9, 1e9, notes)
    patch = {"status": encode_status(made, state, {}, 1e9)}
    cluster.client().call(
        "PATCH",
        f"{DATA_CACHES}/one/status",
        {"fieldValidation": "Strict"},
        patch,
        "application/merge-patch+json",
    )
    titles, row = cluster.kubectl("get", "edc").splitlines()
    assert titles.split() == ["NAME", "DATACACHEID", "STATUS", "PROGRESS", "BUCKET", "PATH", "AGE"]
    assert row.split()[1:6] == [made.id, "Updating", "40%", "default", "/models/one/"]
