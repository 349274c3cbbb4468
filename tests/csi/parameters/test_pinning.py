"""What a pin may change of a source, and what has one pin."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.keys import SourceSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.dialects.urls import UrlFile, UrlSpec
from csi.parameters.pinning import is_pinned_form_of, pin_name

HUB, NAS, URL = (
    HubSpec("HuggingFace/Model", "org/name"),
    NasSpec("nas", "/models"),
    UrlSpec((UrlFile("https://files.example.com/a"),)),
)
FIRM = replace(HUB, revision="a" * 40)
SEVERAL = CompositeSpec((("a", HUB), ("b", NAS)), (("a", 5),))
SEVERAL_FIRM = replace(SEVERAL, parts=(("a", FIRM), ("b", NAS)))


@pytest.mark.parametrize(
    ("asked", "pinned"),
    [(HUB, FIRM), (HUB, HUB), (NAS, NAS), (URL, URL), (SEVERAL, SEVERAL), (SEVERAL, SEVERAL_FIRM)],
)
def test_a_pin_makes_revisions_firm(asked: SourceSpec, pinned: SourceSpec) -> None:
    assert is_pinned_form_of(asked, pinned)


@pytest.mark.parametrize(
    ("asked", "pinned"),
    [
        (HUB, replace(FIRM, repo_id="org/other")),
        (HUB, replace(FIRM, repo_source="ModelScope/Model")),
        (HUB, replace(FIRM, ignore_patterns=("x",))),
        (HUB, NAS),
        (NAS, replace(NAS, server="other")),
        (NAS, replace(NAS, uid=7)),
        (URL, UrlSpec((UrlFile("http://169.254.169.254/latest"),))),
        (SEVERAL, HUB),
        (SEVERAL, replace(SEVERAL, parts=SEVERAL.parts[:1])),
        (SEVERAL, replace(SEVERAL, parts=(("a", HUB), ("c", NAS)))),
        (SEVERAL, replace(SEVERAL, parts=(("a", HUB), ("b", replace(NAS, path="/secret"))))),
        (SEVERAL, replace(SEVERAL, limits=())),
    ],
)
def test_a_pin_changes_nothing_else(asked: SourceSpec, pinned: SourceSpec) -> None:
    assert not is_pinned_form_of(asked, pinned)


def test_one_content_has_one_pin_whoever_names_it_and_however_it_comes() -> None:
    spec = CacheSpec(HUB)
    assert re.fullmatch("pin-[0-9a-f]{40}", pin_name(spec))
    assert {
        pin_name(replace(spec, untrusted=True)),
        pin_name(replace(spec, egress_profile="slow", bandwidth_limit=5)),
    } == {pin_name(spec)}
    others = [
        replace(spec, preserve_ownership=True),
        CacheSpec(replace(HUB, revision="v1")),
        CacheSpec(replace(HUB, allow_patterns=("*.json",))),
    ]
    assert len({pin_name(spec), *map(pin_name, others)}) == 4
