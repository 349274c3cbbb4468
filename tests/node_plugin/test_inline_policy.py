"""Where an inline volume may point."""

from __future__ import annotations

import argparse
import json

import pytest

from csi.errors import InvalidParameter, PermissionDenied
from csi.spec.parameters import parse
from node_plugin.inline_policy import InlinePolicy, nas_prefixes

HUB = {"repoId": "org/name"}


def allowed(prefixes: list[str], server: str, path: str) -> bool:
    try:
        InlinePolicy(prefixes).check(parse({"server": server, "path": path}))
    except PermissionDenied as error:
        assert f"--allow-inline-nas {server}:{path}" in str(error)
        return False
    return True


def test_any_repository_of_the_configured_hub_may_be_named() -> None:
    InlinePolicy().check(parse(HUB))


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
def test_a_share_may_be_named_below_what_the_operator_listed(prefix: str, server: str, path: str, expected: bool) -> None:
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
    (S3, ["store.example.com"], True),
    (S3, ["example.com", "store.example.com.evil"], False),
    ({"url": "http://0x0a010203/b"}, ["10.0.0.0/8"], True),
    ({"url": "http://169.254.169.254/latest"}, ["*.example.com"], False),
    ({"sources": json.dumps([{"folder": "a", **HUB}, {"folder": "b", **S3}])}, ["store.example.com"], True),
    ({"sources": json.dumps([{"folder": "a", **HUB}, {"folder": "b", **S3}])}, [], False),
]


@pytest.mark.parametrize(("attributes", "origins", "expected"), LISTED)
def test_a_host_may_be_named_that_the_operator_listed(attributes: dict[str, str], origins: list[str], expected: bool) -> None:
    policy, asked = InlinePolicy(origins=origins), parse(attributes)
    if expected:
        policy.check(asked)
    else:
        with pytest.raises(PermissionDenied, match="not on the operator's list; use a StorageClass, or .* --allow-origins"):
            policy.check(asked)


def test_several_sources_are_each_looked_at() -> None:
    parts = json.dumps([{"folder": "a", **HUB}, {"folder": "b", "server": "nas", "path": "/x"}])
    with pytest.raises(PermissionDenied, match="--allow-inline-nas nas:/x"):
        InlinePolicy(origins=["nas"]).check(parse({"sources": parts}))


@pytest.mark.parametrize("key", ["egressProfile", "ramRole"])
def test_what_only_an_administrator_may_set_is_refused(key: str) -> None:
    oss = {"bucket": "models", "url": "oss.example.com", key: "x"}
    with pytest.raises(PermissionDenied, match=f"{key} is not for inline volumes: only an administrator"):
        InlinePolicy(origins=["oss.example.com"]).check(parse(oss))


@pytest.mark.parametrize(("key", "value"), [("manifestDigest", "a" * 64), ("capacityBytes", "0"), ("namedBy", "pod")])
def test_what_only_a_controller_writes_is_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{key} is not for inline volumes"):
        InlinePolicy(["*"]).check(parse({**HUB, key: value}))


def test_the_operators_list_is_read_by_commas() -> None:
    assert nas_prefixes("") == [] and nas_prefixes(" a:/x , * ,b:/") == ["a:/x", "*", "b:/"]
    for bad in ("nas", "/models", ":/x", "a:/x,b"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not server:/path"):
            nas_prefixes(bad)
