"""What people of a cluster see with kubectl: how far a fill is, why there is none, and conditions as all
of Kubernetes has them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import pytest

from csi.registry.custom_resource import GROUP, VERSION, parse_time
from tests.cluster.installed import Driver
from tests.cluster.kubectl import Object, condition
from tests.cluster.lab import Lab
from tests.cluster.pods import applied
from tests.cluster.spaces import wait_for
from tests.cluster.test_volumes import settled, volumes_of
from tests.cluster.volumes import claim, claim_volume, inline_volume, reader
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MIB = 1 << 20
SIZE, LINE = 96 * MIB, 4 * MIB
"""Bytes of a model, and bytes a second that the slow hub sends: time enough for two Events of the fill,
which come every 15 s."""
_PROGRESS = re.compile(r"CacheFilling: [\d.]+ MiB of 96\.0 MiB \((\d+)%\), ([\d.]+) MiB/s, about \d+ s left")
NOWHERE = "HuggingFace/Model org/nowhere@main does not exist, or is private: check repoId or give a token in a Secret (key `token`)"  # noqa: E501


@pytest.fixture(scope="module", autouse=True)
def models(hub: Hub) -> None:
    """A model that takes a while, and one that comes at once."""
    hub.repo("org/long", {"model.bin": os.urandom(SIZE)})
    hub.repo("org/short", {"model.bin": os.urandom(MIB)})


@pytest.fixture
def slow(hub: Hub) -> Iterator[None]:
    """The hub is."""
    hub.faults.rate = LINE
    yield
    hub.faults.rate = None


def warnings(lab: Lab, name: str) -> dict[str, set[str]]:
    """The messages of an object's warnings, by their reasons; not that the lab has no name service."""
    found: dict[str, set[str]] = {}
    for event in lab.kubectl.list("events"):
        if (
            event["involvedObject"]["name"] == name
            and event["type"] == "Warning"
            and event["reason"] != "MissingClusterDNS"
        ):
            found.setdefault(event["reason"], set()).add(event["message"])
    return found


def filling(lab: Lab) -> str:
    """What kubectl shows of the only volume in the column FILLING."""
    header, row = lab.kubectl.run("get", "cachevolumes").splitlines()
    at = header.index("FILLING")
    return row[at : header.rindex("AGE")].strip()


def check_conditions(thing: Object, types: Sequence[str]) -> None:
    """They are as the API conventions have them ("Typical status properties"), and about the spec as it is
    now."""
    conditions = thing["status"]["conditions"]
    assert [one["type"] for one in conditions] == list(types)
    for one in conditions:
        assert set(one) == {"type", "status", "reason", "message", "lastTransitionTime", "observedGeneration"}
        assert one["status"] in ("True", "False", "Unknown")
        assert one["message"]
        assert re.fullmatch("[A-Z][A-Za-z]+", one["reason"])
        assert parse_time(one["lastTransitionTime"]) >= parse_time(thing["metadata"]["creationTimestamp"])
        assert (
            one["observedGeneration"]
            == thing["status"]["observedGeneration"]
            == thing["metadata"]["generation"]
        )


@pytest.mark.usefixtures("slow")
def test_a_slow_fill_is_told_to_the_claim_and_to_the_pod_and_shown_with_the_volume(
    lab: Lab, driver: Driver
) -> None:
    percents: list[int] = []

    def all_is_told() -> bool:
        percents.extend(int(number) for number in re.findall(r"^(\d+)%$", filling(lab)))
        return len({*percents}) > 1 and all(
            _PROGRESS.search(lab.kubectl.events(name)) for name in ("long-claim", "long-inline")
        )

    volumes = {
        "long-inline": inline_volume({"repoId": "org/long"}),
        "long-mounting": claim_volume("long-claim"),
    }
    # One node, one fill: the line is not shared.
    inline, mounting = (reader(name, volume, node=lab.nodes[0].name) for name, volume in volumes.items())
    with volumes_of(lab, {"repoId": "org/long"}), applied(lab.kubectl, claim("long-claim", "models")):
        lab.kubectl.wait("pvc", "long-claim", lambda found: found["status"]["phase"] == "Bound")
        with applied(lab.kubectl, inline, mounting):
            wait_for(all_is_told, 60, "Events with bytes, rate and time left")
            for kind, name in (("pvc", "long-claim"), ("pod", "long-inline")):
                assert re.search(
                    r"Normal +CacheFilling .* datacache-node .* of 96\.0 MiB",
                    lab.kubectl.run("describe", kind, name),
                )
                progress = _PROGRESS.search(lab.kubectl.events(name))
                assert progress
                assert float(progress[2]) * MIB == pytest.approx(LINE, rel=0.5)
            assert percents == sorted(percents)
            assert percents[-1] < 100
            for name in ("long-inline", "long-mounting"):
                lab.kubectl.wait_running(name)
            for name in ("long-claim", "long-inline"):
                wait_for(
                    lambda name=name: "CacheReady: image " in lab.kubectl.events(name),
                    10,
                    f"{name} to hear that the image is there",
                )  # type: ignore[misc]
                assert warnings(lab, name) == {}
            wait_for(lambda: filling(lab) == "", 10, "the volume to be shown as full")
    settled(lab, driver)


def test_a_repository_that_is_nowhere_is_one_clear_reason_on_the_claim_and_on_the_pod(
    lab: Lab, driver: Driver
) -> None:
    nowhere = {"repoId": "org/nowhere"}
    with (
        volumes_of(lab, nowhere),
        applied(
            lab.kubectl, claim("nowhere-claim", "models"), reader("nowhere-inline", inline_volume(nowhere))
        ),
    ):
        wait_for(
            lambda: warnings(lab, "nowhere-claim") and len(warnings(lab, "nowhere-inline")) == 2,
            60,
            "the warnings",
        )
        refused = f"rpc error: code = Unauthenticated desc = {NOWHERE}"
        assert warnings(lab, "nowhere-claim") == {"ProvisioningFailed": {refused}}
        assert warnings(lab, "nowhere-inline") == {
            "CacheFillFailed": {NOWHERE},
            "FailedMount": {f'MountVolume.SetUp failed for volume "data" : {refused}'},
        }
    settled(lab, driver)


def test_a_repository_that_went_after_the_claim_was_bound_is_one_clear_reason_on_both(
    lab: Lab, driver: Driver, hub: Hub
) -> None:
    hub.repo("org/gone", {"model.bin": os.urandom(MIB)})
    with volumes_of(lab, {"repoId": "org/gone"}), applied(lab.kubectl, claim("gone-claim", "models")):
        bound = lab.kubectl.wait("pvc", "gone-claim", lambda found: found["status"]["phase"] == "Bound")
        gone = hub.repositories.pop(("model", "org/gone"))
        why = NOWHERE.replace("org/nowhere@main", f"org/gone@{gone.branches['main']}")
        with applied(lab.kubectl, reader("gone-mounting", claim_volume("gone-claim"))):
            wait_for(
                lambda: warnings(lab, "gone-claim") and "FailedMount" in warnings(lab, "gone-mounting"),
                60,
                "the warnings",
            )
            assert warnings(lab, "gone-claim") == {"CacheFillFailed": {why}}
            mount = f'MountVolume.MountDevice failed for volume "{bound["spec"]["volumeName"]}"'
            assert warnings(lab, "gone-mounting")["FailedMount"] == {
                f"{mount} : rpc error: code = Unauthenticated desc = {why}"
            }
    settled(lab, driver)


def test_conditions_follow_the_spec_and_keep_their_time_while_they_hold(lab: Lab, driver: Driver) -> None:
    prewarm: Object = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "CachePrewarm",
        "metadata": {"name": "short", "namespace": "default"},
    }
    prewarm["spec"] = {"caches": [{"parameters": {"repoId": "org/short"}}]}
    with volumes_of(lab, {"repoId": "org/short"}), applied(lab.kubectl, claim("short", "models"), prewarm):
        lab.kubectl.wait("pvc", "short", lambda found: found["status"]["phase"] == "Bound")
        (volume,) = [one["metadata"]["name"] for one in lab.kubectl.list("cachevolumes", "")]
        before = lab.kubectl.wait(
            "cachevolume", volume, lambda found: found.get("status", {}).get("conditions")
        )
        check_conditions(before, ["Resolved"])
        ready = lab.kubectl.wait("cacheprewarm", "short", lambda found: condition(found, "Ready") == "True")
        check_conditions(ready, ["Ready", "Progressing", "Failed"])
        lab.kubectl.run(
            "patch",
            "cachevolume",
            volume,
            "--type=merge",
            "-p",
            '{"spec": {"performance": {"readIops": 5000}}}',
        )
        after = lab.kubectl.wait(
            "cachevolume", volume, lambda found: found["status"]["observedGeneration"] == 2
        )
        check_conditions(after, ["Resolved"])
        assert (
            after["status"]["conditions"][0]["lastTransitionTime"]
            == before["status"]["conditions"][0]["lastTransitionTime"]
        )
    settled(lab, driver)
