"""The custom resources, on a real API server: what is no volume is refused, in words that help."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.dialects.urls import MAX_URLS
from csi.parameters.performance_keys import KEYS, LEVELS, Performance
from csi.parameters.volume_parameters import SPELLING
from csi.registry.pins.codec import encode as encode_pin
from csi.registry.pins.pins import CachePin
from csi.registry.volumes.codec import encode
from csi.registry.volumes.record import VolumeRecord
from tests.apiserver import CRDS, ApiServer

NAS = CacheSpec(NasSpec("nas.example.com", "/models"))
HUB = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main"))
RECORD = VolumeRecord(
    "dc-1", "pvc-1", NAS, NAS, "a" * 64, 2**30, 5, created_at=1.5, performance=Performance("AutoPL", 7, True)
)
VALID = encode(RECORD)


def changed(*path: str, to: object, of: dict[str, Any] | None = None) -> dict[str, Any]:
    """VALID, or `of`, with another value at `path`, None for none."""
    thing = copy.deepcopy(of or VALID)
    part = thing
    for key in path[:-1]:
        part = part[key]
    if to is None:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return thing


def refusal(cluster: ApiServer, thing: dict[str, Any]) -> str:
    """What kubectl says when the server is asked, in a dry run, to take `thing`; "" where it would."""
    try:
        cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=thing)
    except AssertionError as error:
        return str(error)
    return ""


def performance(**keys: object) -> dict[str, Any]:
    return changed("spec", "performance", to=keys)


REFUSED = {
    "a name of another volume": (
        changed("metadata", "name", to="other"),
        "metadata.name has to be the volumeID",
    ),
    "no source": (changed("spec", "parameters", to=None), "spec.parameters: Required value"),
    "no parameter": (
        changed("spec", "parameters", to={}),
        "spec.parameters in body should have at least 1 properties",
    ),
    "too many parameters": (
        changed("spec", "parameters", to={f"k{n}": "" for n in range(65)}),
        "must have at most 64 items",
    ),
    "a value that is too long": (
        changed("spec", "parameters", "path", to="x" * 262145),
        "may not be more than 262144",
    ),
    "a key that is too long": (
        changed("spec", "parameters", "k" * 129, to=""),
        "more than 128 characters; docs/parameters.md has all keys",
    ),
    "a credential": (
        changed("spec", "parameters", "accessToken", to="s3cr3t"),
        "is a credential; put it into a Secret",
    ),
    "a credential of the pinned source": (
        changed("spec", "pinned", "parameters", "AKSECRET", to="s3cr3t"),
        "is a credential; put it into a Secret",
    ),
    "a digest that is none": (
        changed("spec", "pinned", "manifestDigest", to="A" * 64),
        "has to be a sha256 in 64 lower-case hex digits",
    ),
    "no digest": (
        changed("spec", "pinned", "manifestDigest", to=None),
        "spec.pinned.manifestDigest: Required value",
    ),
    "content below nothing": (
        changed("spec", "pinned", "contentBytes", to=-1),
        "should be greater than or equal to 0",
    ),
    "content over capacity": (
        changed("spec", "pinned", "contentBytes", to=2**31),
        "capacityBytes has to be at least pinned.contentBytes",
    ),
    "a capacity that no image has": (
        changed("spec", "capacityBytes", to=2**45),
        "should be less than or equal to 17592186044416",
    ),
    "access modes of no kind": (
        changed("spec", "writerAccessModes", to="allow"),
        'supported values: "refuse", "downgrade"',
    ),
    "a time that is none": (changed("spec", "created", to="yesterday"), "must be of type date-time"),
    "a time elsewhere": (
        changed("spec", "created", to="2026-01-31T12:00:00+01:00"),
        "created has to be a time in UTC",
    ),
    "a clone of itself": (changed("spec", "clonedFrom", to="dc-1"), "clonedFrom names the volume itself"),
    "no id": (changed("spec", "volumeID", to=""), "spec.volumeID in body should be at least 1 chars long"),
    "an id that is too long": (changed("spec", "volumeID", to="x" * 1025), "may not be more than 1024"),
    "an unknown key": (changed("spec", "flavour", to="vanilla"), 'unknown field "spec.flavour"'),
    "no performance key": (performance(), "spec.performance in body should have at least 1 properties"),
    "an unknown level": (
        performance(performanceLevel="PL9"),
        'supported values: "PL0", "PL1", "PL2", "PL3", "AutoPL"',
    ),
    "provisioned with a level": (
        performance(performanceLevel="PL1", provisionedIops=7),
        "provisionedIops is for AutoPL",
    ),
    "bursting with a level": (
        performance(performanceLevel="PL1", burstingEnabled=True),
        "burstingEnabled is for AutoPL",
    ),
    "a ceiling with a level": (
        performance(performanceLevel="PL1", readIops=7),
        "readIops and readBandwidth are for volumes without performanceLevel",
    ),
    "a ceiling with bursting": (
        performance(burstingEnabled=False, readBandwidth=2**20),
        "readIops and readBandwidth are for volumes without",
    ),
    "a burst without credit": (performance(readIops=5, burstIops=7), "burstIops and burstCredit go together"),
    "a credit without a burst": (
        performance(readIops=5, burstCredit=7),
        "burstIops and burstCredit go together",
    ),
    "two ways of bursting": (
        performance(burstingEnabled=True, burstIops=7, burstCredit=7),
        "keep one way of bursting",
    ),
    "a burst above nothing": (
        performance(readBandwidth=2**20, burstIops=7, burstCredit=7),
        "burstIops needs a limit to burst above",
    ),
    "a burst below its limit": (
        performance(readIops=9, burstIops=7, burstCredit=7),
        "burstIops has to be more than readIops",
    ),
    "bandwidth below one I/O": (performance(readBandwidth=1), "should be greater than or equal to 16384"),
}


@pytest.mark.parametrize(
    "kind",
    [
        name
        for kind in ("cachevolume", "cachepin", "cacheprewarm", "datacache")
        for name in (kind, f"{kind}s")
    ],
)
def test_people_ask_for_one_object_by_its_kind_and_for_all_kinds_at_once(
    cluster: ApiServer, kind: str
) -> None:
    """A category of a kind's name would stand for many kinds there, and of one object kubectl could not be
    asked any more."""
    assert (
        cluster.kubectl("get", kind, "nothing", "--ignore-not-found")
        == cluster.kubectl("get", "datacache-csi")
        == ""
    )


def test_every_crd_passes_a_dry_run(cluster: ApiServer) -> None:
    assert "(server dry run)" in cluster.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "-f", str(CRDS)
    )


@pytest.mark.parametrize(
    "thing",
    [VALID, performance(readIops=5, burstIops=7, burstCredit=7), changed("spec", "performance", to=None)],
)
def test_a_volume_is_taken(cluster: ApiServer, thing: dict[str, Any]) -> None:
    assert refusal(cluster, thing) == ""


@pytest.mark.parametrize(("thing", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_volume_is_refused_in_words_that_help(
    cluster: ApiServer, thing: dict[str, Any], words: str
) -> None:
    said = refusal(cluster, thing)
    assert words in said
    assert "s3cr3t" not in said


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (changed("spec", "name", to="pvc-2"), "volumeID and name cannot change"),
        (
            changed("spec", "created", to="2026-01-31T12:00:00Z"),
            "created cannot change: this volume exists already",
        ),
        (changed("spec", "capacityBytes", to=2**31), "capacityBytes cannot change"),
        (changed("spec", "clonedFrom", to="dc-0"), "clonedFrom cannot change"),
        (changed("spec", "pinNamespace", to="team"), "pinNamespace cannot change"),
        (
            changed("spec", "pinned", "manifestDigest", to="b" * 64),
            "manifestDigest and contentBytes cannot change",
        ),
        (changed("spec", "pinned", "contentBytes", to=6), "manifestDigest and contentBytes cannot change"),
        (performance(readIops=9), ""),
    ],
    ids=["name", "created", "capacity", "clone", "pin", "digest", "content", "performance"],
)
def test_of_a_volume_that_is_there_performance_alone_changes(
    cluster: ApiServer, thing: dict[str, Any], words: str
) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=VALID)
    said = refusal(cluster, thing)
    assert words in said if words else said == ""


def test_the_largest_parameters_that_the_driver_takes_fit(cluster: ApiServer) -> None:
    urls = "\n".join(f"https://files.example.com/{number:04}/{'x' * 210}" for number in range(MAX_URLS))
    parameters = {"type": "URL", "url": urls, "sha256": ",".join(["a" * 64] * MAX_URLS)}
    thing = changed("spec", "parameters", to=parameters)
    thing["spec"]["pinned"]["parameters"] = parameters
    # kubectl's client-side apply would write all of it into an annotation once more.
    assert "dc-1" in cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=thing)


PIN = encode_pin(CachePin.from_specs("default", HUB, HUB, "a" * 64))


def changed_pin(*path: str, to: object) -> dict[str, Any]:
    return changed(*path, to=to, of=PIN)


REFUSED_PINS = {
    "another name": (
        changed_pin("metadata", "name", to="main"),
        "metadata.name has to be pin- and 40 hex digits",
    ),
    "no source": (changed_pin("spec", "parameters", to=None), "spec.parameters: Required value"),
    "a credential": (
        changed_pin("spec", "parameters", "token", to="s3cr3t"),
        "is a credential; put it into a Secret",
    ),
    "a credential of the pinned source": (
        changed_pin("spec", "pinned", "parameters", "HF_TOKEN", to="s3cr3t"),
        "is a credential; put it into",
    ),
    "a digest that is none": (
        changed_pin("spec", "pinned", "manifestDigest", to="A" * 64),
        "has to be a sha256 in 64 lower-case hex digits",
    ),
    "a time that is none": (
        changed_pin("spec", "nodes", to={"node-a": "yesterday"}),
        "since when a pin is held has to be a time in UTC",
    ),
    "a time of a volume that is none": (
        changed_pin("spec", "volumes", to={"dc-1": ""}),
        "since when a pin is held has to be a time in UTC",
    ),
    "too many holders": (
        changed_pin("spec", "nodes", to={f"n{n}": "2026-01-31T12:00:00Z" for n in range(10001)}),
        "must have at most 10000 items",
    ),
    "an unknown key": (changed_pin("spec", "pods", to={}), 'unknown field "spec.pods"'),
}


@pytest.mark.parametrize(("thing", "words"), REFUSED_PINS.values(), ids=REFUSED_PINS)
def test_what_is_no_pin_is_refused_in_words_that_help(
    cluster: ApiServer, thing: dict[str, Any], words: str
) -> None:
    said = refusal(cluster, thing)
    assert words in said
    assert "s3cr3t" not in said


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (changed_pin("spec", "parameters", "repoId", to="org/other"), "parameters cannot change"),
        (
            changed_pin("spec", "pinned", "parameters", "repoId", to="org/other"),
            "what is pinned cannot change",
        ),
        (
            changed_pin("spec", "pinned", "manifestDigest", to="b" * 64),
            "what is pinned cannot change: volumes show it; delete the CachePin",
        ),
        (changed_pin("spec", "nodes", to={"node-a": "2026-01-31T12:00:00Z"}), ""),
        (changed_pin("spec", "volumes", to={}), ""),
    ],
    ids=["source", "pinned source", "digest", "node", "volume"],
)
def test_of_a_pin_that_is_there_holders_alone_change(
    cluster: ApiServer, thing: dict[str, Any], words: str
) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=PIN)
    said = refusal(cluster, thing)
    assert words in said if words else said == ""


def schema(file: str = "cachevolumes.yaml") -> dict[str, Any]:
    (crd,) = yaml.safe_load_all((CRDS / file).read_text())
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]


def test_the_schema_knows_the_keys_that_the_code_knows() -> None:
    spec = schema()["spec"]["properties"]
    assert tuple(spec["performance"]["properties"]) == KEYS
    assert tuple(spec["performance"]["properties"]["performanceLevel"]["enum"]) == LEVELS
    for file in ("cachevolumes.yaml", "cachepins.yaml"):
        rule = schema(file)["spec"]["properties"]["parameters"]["x-kubernetes-validations"][0]["rule"]
        named = json.loads(rule[rule.index("[") : rule.index("]") + 1].replace("'", '"'))
        assert set(named) == SPELLING.secret_names


@pytest.mark.parametrize("file", ["cachevolumes.yaml", "cachepins.yaml"])
def test_every_text_list_and_map_has_a_bound(file: str) -> None:
    def unbound(part: dict[str, Any], path: str) -> list[str]:
        keys = {"string": ("maxLength", "enum", "format"), "array": ("maxItems",)}.get(
            part.get("type", ""), ()
        )
        found = [path] if keys and not any(key in part for key in keys) else []
        if "additionalProperties" in part:
            found += (
                [path] if "maxProperties" not in part else unbound(part["additionalProperties"], f"{path}.*")
            )
        below = {**part.get("properties", {}), **({"[]": part["items"]} if "items" in part else {})}
        return found + [name for key, value in below.items() for name in unbound(value, f"{path}.{key}")]

    assert unbound({"properties": {key: schema(file)[key] for key in ("spec", "status")}}, "") == []
