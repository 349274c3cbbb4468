"""A DataCache in ECI's words: what it is called, where its data comes from, and what is no cache."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from csi.errors import DataCacheError, InvalidParameter, PermissionDenied
from csi.parameters.data_cache import (
    DEFAULT_GIB,
    DataCacheSpec,
    contains_path,
    parse_bucket,
    parse_data_cache,
    parse_path,
    split_secrets,
)
from csi.parameters.dialects.buckets import BucketSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.dialects.urls import UrlSpec
from csi.performance.capacity import GIB

HUB = {"repoSource": "HuggingFace/Model", "repoId": "org/name"}
NAS_OPTIONS = "nolock,proto=tcp,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport"
NAS = {"server": "nas.example.com", "path": "/models/", "vers": "3", "options": NAS_OPTIONS}


def cache(type: str = "URL", options: Mapping[str, str] | None = None, **more: object) -> DataCacheSpec:
    return parse_data_cache("", "/models/one", type, HUB if options is None else options, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("type", "options", "source"),
    [
        ("URL", HUB, HubSpec),
        ("url", {"REPOID": "org/name", "reposource": "ModelScope/Model"}, HubSpec),
        ("URL", {"url": "https://files.example.com/a.bin"}, UrlSpec),
        ("NAS", NAS, NasSpec),
        (
            "OSS",
            {
                "bucket": "models",
                "url": "oss-cn-hangzhou.aliyuncs.com",
                "path": "/a",
                "otherOpts": "-o allow_other",
            },
            BucketSpec,
        ),
        ("S3", {"bucket": "models", "endpoint": "https://minio.example.com"}, BucketSpec),
    ],
)
def test_the_options_of_each_type_name_its_source(
    type: str, options: Mapping[str, str], source: type
) -> None:
    found = cache(type, options)
    found.check()
    assert isinstance(found.to_volume_parameters().spec.source, source)


@pytest.mark.parametrize(
    ("type", "options", "words"),
    [
        ("NAS", {**NAS, "serve": "x"}, "dataSource.options: unknown parameter 'serve'"),
        ("NAS", {"path": "/models"}, "server is missing"),
        ("URL", {}, "dataSource.options"),
        ("OSS", HUB, "type is"),
        ("URL", {**HUB, "manifestDigest": "a" * 64}, "manifestDigest, which is not a key of a source"),
        ("URL", {**HUB, "provisionedIops": "5"}, "provisionedIops, which is not a key of a source"),
        ("URL", {**HUB, "accessToken": "hf_x"}, "put it into a Secret"),
        ("SNAPSHOT", {}, "snapshotId alone, s- and 20 hex digits; it is missing"),
        ("SNAPSHOT", {"snapshotId": "s-" + "a" * 20, "url": "x"}, "snapshotId alone"),
    ],
)
def test_options_that_name_no_source_are_refused_by_name(
    type: str, options: Mapping[str, str], words: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        cache(type, options).check()
    assert words in str(caught.value)
    assert "hf_x" not in str(caught.value)


def test_an_egress_profile_is_the_operators_to_choose() -> None:
    with pytest.raises(PermissionDenied, match="vSwitch"):
        cache(options={**HUB, "egressProfile": "fast"}).check()


def test_a_network_that_a_profile_is_called_by_selects_it() -> None:
    found = cache(networks=("vsw-1", "sg-1"))
    assert found.to_volume_parameters().spec.egress_profile == ""
    assert found.to_volume_parameters(["sg-1"]).spec.egress_profile == "sg-1"
    assert found.to_volume_parameters(["sg-1", "vsw-1"]).spec.egress_profile == "vsw-1"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "DISK"}, "dataSource.type is 'DISK'; it is one of URL, NAS"),
        ({"type": ""}, "dataSource.type is missing"),
        ({"size_gib": 0}, "size is 0; it is a number of GiB from 1 to 32768"),
        ({"retention_days": -1}, "retentionDays is -1"),
        ({"networks": ("a b",)}, "'a b'"),
    ],
)
def test_fields_that_cannot_be_are_refused_by_name(fields: Mapping[str, object], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        cache(**fields)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "models", "/", "//", "/a/../b", "/./a", "/a\nb", "/" + "a" * 1024])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="absolute path"):
        parse_path(text)


def test_a_path_has_one_spelling() -> None:
    assert parse_path("/models//llama/") == parse_path("/models/llama") == "/models/llama"


@pytest.mark.parametrize("text", ["eci-system", "a b", "-a", "a" * 64])
def test_what_is_no_bucket_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="bucket"):
        parse_bucket(text)


def test_no_bucket_is_the_default_one() -> None:
    assert parse_bucket("") == "default"


def test_a_path_holds_itself_and_what_is_below_it_but_no_sibling() -> None:
    assert contains_path("/models", "/models")
    assert contains_path("/models", "/models/a")
    assert not contains_path("/models", "/models-2")


def test_credentials_are_told_from_options_however_they_are_spelled() -> None:
    plain, secrets = split_secrets({**HUB, "ACCESSTOKEN": "hf_x", "akid": "id", "akSecret": "s"})
    assert plain == HUB
    assert secrets == {"accessToken": "hf_x", "akId": "id", "akSecret": "s"}


def test_a_size_that_was_asked_for_stays_and_another_grows_with_the_content() -> None:
    assert cache(size_gib=5).capacity_gib(100 * GIB) == 5
    assert cache().capacity_gib(1) == DEFAULT_GIB
    assert cache().capacity_gib(40 * GIB + 1) == 41


def test_a_cache_is_for_all_namespaces_or_those_that_it_lists() -> None:
    assert cache().allows_namespace("any")
    assert cache(namespaces=("a", "b")).allows_namespace("b")
    assert not cache(namespaces=("a",)).allows_namespace("b")


def test_all_errors_are_the_drivers() -> None:
    with pytest.raises(DataCacheError):
        cache("URL", {"repoId": "\0"}).check()
