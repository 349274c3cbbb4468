"""How the operator writes egress profiles."""

from __future__ import annotations

import argparse

import pytest

from controller_plugin.__main__ import build_parser
from csi.errors import FailedPrecondition
from csi.program.egress_profiles import NO_PROFILE, EgressProfile, get_profile, parse_egress_profiles

BASE = ["--endpoint", "unix:///x", "--registry", "/x"]


def test_a_profile_has_a_namespace_a_rate_or_both() -> None:
    found = parse_egress_profiles(
        "a=netns:/run/netns/a,rate:500mbit; b=rate:1.5Gbit\nc=netns:/proc/1/ns/net;d=rate:34gbit"
    )
    assert found == {
        "a": EgressProfile("/run/netns/a", 500_000_000),
        "b": EgressProfile("", 1_500_000_000),
        "c": EgressProfile("/proc/1/ns/net"),
        "d": EgressProfile("", 34_000_000_000),
    }


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "=rate:1mbit",
        "a=",
        "a=rate",
        "a=rate:fast",
        "a=rate:1mbit,rate:2mbit",
        "a=netns:run/x",
        "a=rate:1bit",
        "a=rate:40gbit",
        "a=rate:" + "9" * 400 + "tbit",
        "a=rate:1mbit;a=rate:2mbit",
    ],
)
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"NAME=netns:PATH|netns:PATH nor|absolute path|500mbit"
    ):
        parse_egress_profiles(text)


def test_the_flag_may_be_given_again_and_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATACACHE_EGRESS_PROFILE", "e=rate:1mbit")
    assert list(build_parser().parse_args(BASE).egress_profile) == ["e"]
    both = ["--egress-profile", "a=rate:1mbit", "--egress-profile", "b=rate:2mbit"]
    assert list(build_parser().parse_args([*BASE, *both]).egress_profile) == ["a", "b"]


def test_a_profile_that_is_not_known_is_refused_with_those_that_are() -> None:
    known = parse_egress_profiles("a=rate:1mbit;b=rate:1mbit")
    assert get_profile(known, "a").rate == 1_000_000
    assert get_profile(known, "") == NO_PROFILE
    with pytest.raises(FailedPrecondition, match=r"'c' is not one of this plugin's \(known are a, b\)"):
        get_profile(known, "c")
