"""Where a user's words may point."""

from __future__ import annotations

import argparse
import json

import pytest

from csi.destinations.allow_list import AllowList, parse_nas_prefixes
from csi.errors import InvalidParameter, PermissionDenied
from csi.parameters.dialects.keys import KeySetter
from csi.parameters.dialects.table import DIALECTS
from csi.parameters.volume_parameters import KEYS, VOLUME_KEYS, VolumeParameters, parse_volume_parameters

HUB = {"repoId": "org/name"}


def allowed(prefixes: list[str], server: str, path: str) -> bool:
    try:
        AllowList(prefixes).check(parse_volume_parameters({"server": server, "path": path}))
    except PermissionDenied as error:
        assert f"--allow-inline-nas {server}:{path}" in str(error)
        return False
    return True


def test_any_repository_of_the_configured_hub_may_be_named() -> None:
    AllowList().check(parse_volume_parameters(HUB))


@pytest.mark.parametrize(
    ("prefix", "server", "path", "expected"),
    [
        ("nas:/models", "nas", "/models", True),
        ("nas:/models", "nas", "/models/llama/v1", True),
        ("nas:/models/", "NAS", "/models/x", True),
        ("nas:/", "nas", "/anything", True),
        ("*", "any", "/thing", True),
        ("nas:/models", "nas", "/modelsecret", False),
        ("nas:/models", "nas", "/", False),
        ("nas:/models", "other", "/models", False),
        ("nas:/models", "nas.evil.com", "/models", False),
        ("[fe80::1]:/x", "fe80::1", "/x/y", True),
    ],
)
def test_a_share_may_be_named_below_what_the_operator_listed(
    prefix: str, server: str, path: str, expected: bool
) -> None:
    assert allowed([prefix], server, path) is expected
    assert allowed(["elsewhere:/y", prefix], server, path) is expected
    assert not allowed([], server, path)


URL = {"url": "https://files.example.com:8443/a,https://10.1.2.3/b"}
S3 = {"bucket": "models", "endpoint": "https://store.example.com"}
LISTED = [
    (URL, ["files.example.com:8443", "10.0.0.0/8"], True),
    (URL, ["*.example.com", "10.1.2.3"], True),
    (URL, ["files.example.com"], False),
    (URL, ["files.example.com:443", "10.0.0.0/8"], False),
    ({"url": "https://files.example.com/a"}, ["files.example.com:443"], True),
    (URL, [], False),
    ({"metalink": "https://files.example.com/all.meta4"}, ["files.example.com"], True),
    ({"metalink": "https://files.example.com/all.meta4"}, ["mirror.example.com"], False),
    (
        {"sources": json.dumps([{"folder": "a", "metalink": "https://files.example.com/all.meta4"}])},
        ["files.example.com"],
        True,
    ),
    (
        {"sources": json.dumps([{"folder": "a", "metalink": "https://files.example.com/all.meta4"}])},
        [],
        False,
    ),
    (S3, ["store.example.com"], True),
    (S3, ["example.com", "store.example.com.evil"], False),
    ({"url": "http://0x0a010203/b"}, ["10.0.0.0/8"], True),
    ({"url": "http://169.254.169.254/latest"}, ["*.example.com"], False),
    ({"sources": json.dumps([{"folder": "a", **HUB}, {"folder": "b", **S3}])}, ["store.example.com"], True),
    ({"sources": json.dumps([{"folder": "a", **HUB}, {"folder": "b", **S3}])}, [], False),
]


@pytest.mark.parametrize(("attributes", "origins", "expected"), LISTED)
def test_a_host_may_be_named_that_the_operator_listed(
    attributes: dict[str, str], origins: list[str], expected: bool
) -> None:
    policy, asked = AllowList(destinations=origins), parse_volume_parameters(attributes)
    if expected:
        policy.check(asked)
    else:
        with pytest.raises(
            PermissionDenied, match="not on the operator's list; use a StorageClass, or .* --allow-origins"
        ):
            policy.check(asked)


def test_several_sources_are_each_looked_at() -> None:
    parts = json.dumps([{"folder": "a", **HUB}, {"folder": "b", "server": "nas", "path": "/x"}])
    with pytest.raises(PermissionDenied, match="--allow-inline-nas nas:/x"):
        AllowList(destinations=["nas"]).check(parse_volume_parameters({"sources": parts}))


ADMINISTRATORS = [
    (dialect.name, name)
    for dialect in DIALECTS
    for key in (*dialect.keys, *VOLUME_KEYS)
    for name in (key.name, *key.aliases)
    if key.setter is KeySetter.ADMINISTRATOR
]
PLAIN = {
    "hub": HUB,
    "nas": {"server": "nas", "path": "/x"},
    "oss": {"type": "OSS", "bucket": "models", "url": "store.example.com"},
    "s3": S3,
    "url": {"url": "https://store.example.com/a"},
    "several": {"sources": json.dumps([{"folder": "a", **HUB}])},
}


def lenient() -> AllowList:
    return AllowList(["*"], ["store.example.com"])


@pytest.mark.parametrize(("dialect", "key"), ADMINISTRATORS)
def test_what_only_an_administrator_may_set_is_refused(dialect: str, key: str) -> None:
    lenient().check(parse_volume_parameters(PLAIN[dialect]))
    with pytest.raises(PermissionDenied, match="is not for inline volumes: only an administrator"):
        lenient().check(parse_volume_parameters({**PLAIN[dialect], key: "x"}))


@pytest.mark.parametrize(("dialect", "key"), [item for item in ADMINISTRATORS if item[0] != "several"])
def test_nor_may_it_stand_within_one_of_several_sources(dialect: str, key: str) -> None:
    def nested(**more: str) -> VolumeParameters:
        return parse_volume_parameters(
            {"sources": json.dumps([{"folder": "a", **HUB}, {"folder": "b", **PLAIN[dialect], **more}])}
        )

    lenient().check(nested())
    with pytest.raises(
        (PermissionDenied, InvalidParameter), match=r"only an administrator|\(b\): unknown parameter"
    ):
        lenient().check(nested(**{key: "x"}))


def test_a_key_that_several_sources_have_is_set_by_the_same_people_in_all_of_them() -> None:
    assert all(KEYS[key.name].setter is key.setter for dialect in DIALECTS for key in dialect.keys)


@pytest.mark.parametrize(
    ("key", "value"), [("manifestDigest", "a" * 64), ("capacityBytes", "0"), ("namedBy", "pod")]
)
def test_what_only_a_controller_writes_is_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{key} is not for inline volumes"):
        AllowList(["*"]).check(parse_volume_parameters({**HUB, key: value}))


def test_the_operators_list_is_read_by_commas() -> None:
    assert parse_nas_prefixes("") == []
    assert parse_nas_prefixes(" a:/x , * ,b:/") == ["a:/x", "*", "b:/"]
    for bad in ("nas", "/models", ":/x", "a:/x,b"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not server:/path"):
            parse_nas_prefixes(bad)
