"""Several sources in one volume: each by its own keys, in a folder of its own."""

from __future__ import annotations

import json

import pytest

from csi.errors import InvalidParameter
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.volume_parameters import parse_volume_parameters

HUB = {"folder": "base", "repoId": "org/name"}
NAS = {"folder": "extra", "server": "nas", "path": "/x", "uid": 7}


def refusal(sources: object, **others: str) -> str:
    text = sources if isinstance(sources, str) else json.dumps(sources)
    with pytest.raises(InvalidParameter) as error:
        parse_volume_parameters({"sources": text, **others})
    return str(error.value)


def test_each_source_is_written_in_its_own_keys_in_any_case() -> None:
    found = parse_volume_parameters(
        {"sources": json.dumps([NAS, {"Folder": "base", "REPOID": "org/name"}])}
    ).spec
    assert found.source == CompositeSpec(
        (("base", HubSpec("HuggingFace/Model", "org/name")), ("extra", NasSpec("nas", "/x", uid=7)))
    )
    assert found.is_moving
    assert found.is_unpinnable
    assert found.source.addresses == ("nas",)


def test_a_source_may_have_a_limit_of_its_own() -> None:
    found = parse_volume_parameters(
        {"sources": json.dumps([{**NAS, "BandwidthLimit": "5Mi"}, HUB]), "bandwidthLimit": "9Mi"}
    ).spec
    assert isinstance(found.source, CompositeSpec)
    assert (found.bandwidth_limit, found.source.limits) == (9 << 20, (("extra", 5 << 20),))
    assert "sources[0] (base): bandwidthLimit is '1'" in refusal([{**HUB, "bandwidthLimit": 1}])


def test_the_order_of_the_list_means_nothing() -> None:
    assert parse_volume_parameters({"sources": json.dumps([NAS, HUB])}) == parse_volume_parameters(
        {"sources": json.dumps([HUB, NAS])}
    )


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ("{", "sources is not JSON"),
        ("[" * 100_000, "sources is not JSON"),
        ([], "a JSON list of 1 to"),
        ({}, "a JSON list of 1 to"),
        (["x"], "sources[0] is not a JSON object"),
        (
            '[{"folder": "a", "repoId": "org/x", "repoId": "org/y"}]',
            "sources has an object with 'repoId' twice",
        ),
        ('[{"folder": "a", "Folder": "b", "repoId": "org/x"}]', "sources has an object with 'folder' twice"),
        ('[{"folder": "a", "repoId": "org/x", "REPOID": "org/y"}]', "twice; keep one"),
        ([{**HUB, "allowPatterns": ["*.json"]}], "sources[0] has a value that is not text"),
        ([{"repoId": "a/b"}], "sources[0].folder is ''"),
        ([{**HUB, "folder": "a/b"}], "sources[0].folder"),
        ([{**HUB, "folder": ".."}], "sources[0].folder"),
        ([HUB, HUB], "sources[1].folder is 'base'"),
        ([{**HUB, "revison": "x"}], "sources[0] (base): unknown parameter 'revison'; did you mean revision?"),
        ([{**HUB, "server": "nas"}], "name two sources"),
        ([{**HUB, "sources": "[]"}], "unknown parameter 'sources'"),
        ([{**HUB, "size": "5Gi"}], "unknown parameter 'size'"),
        ([{**HUB, "token": "verySecret123"}], "token is a credential"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_by_the_place_in_it(sources: object, words: str) -> None:
    message = refusal(sources)
    assert words in message
    assert "verySecret123" not in message


def test_a_volume_has_one_source_or_several() -> None:
    assert "name two sources" in refusal([HUB], repoId="org/other")
