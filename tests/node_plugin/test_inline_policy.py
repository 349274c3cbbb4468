"""Where an inline volume may point."""

from __future__ import annotations

import argparse

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


@pytest.mark.parametrize(("key", "value"), [("manifestDigest", "a" * 64), ("capacityBytes", "0")])
def test_what_only_a_controller_writes_is_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{key} is not for inline volumes"):
        InlinePolicy(["*"]).check(parse({**HUB, key: value}))


def test_the_operators_list_is_read_by_commas() -> None:
    assert nas_prefixes("") == [] and nas_prefixes(" a:/x , * ,b:/") == ["a:/x", "*", "b:/"]
    for bad in ("nas", "/models", ":/x", "a:/x,b"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not server:/path"):
            nas_prefixes(bad)
