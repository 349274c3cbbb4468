"""The driver is upgraded and rolled back under readers, who notice nothing, and volumes of one version are
the other's too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import programs
from tests.cluster.driver_image import ready
from tests.cluster.earlier import earlier
from tests.cluster.images import Archive
from tests.cluster.installed import NAMESPACE, Driver
from tests.cluster.kubectl import Object
from tests.cluster.lab import Lab
from tests.cluster.pods import applied
from tests.cluster.spaces import wait_for
from tests.cluster.test_volumes import pods, settled, sum_in, volumes_of
from tests.cluster.volumes import claim, claim_volume, inline_volume, reader
from tests.origins.hub import Hub

pytestmark = pytest.mark.cluster

MODEL = os.urandom(8 << 20)
SUM = hashlib.sha256(MODEL).hexdigest()
SOURCE = {"repoId": "org/upgraded"}
# Past the page cache, by the device.
READ = [
    "sh",
    "-c",
    "while :; do dd if=/data/model.bin bs=1M iflag=direct 2>/dev/null | sha256sum || echo failed; sleep "
    "0.1; done",
]


@pytest.fixture(scope="module")
def before(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Archive]:
    """The checkout before the last change of the programs, and its image, on the node."""
    tree = tmp_path_factory.mktemp("before") / "tree"
    which = earlier(programs.TREE, tree)
    image = ready(tree, programs.cache())
    print(f"\nupgraded from {which}, image {image.name}")
    lab.load(image)
    return tree, image


@pytest.fixture
def as_it_was(driver: Driver, driver_image: Archive) -> Iterator[None]:
    """Whatever comes, the driver that all tests share is there again behind the test."""
    yield
    if running(driver.lab) != {driver_image.name}:
        driver.replace(programs.TREE, driver_image)


def running(lab: Lab) -> set[str]:
    """The images of the driver's own containers."""
    found = [
        container for one in lab.kubectl.list("pod", NAMESPACE) for container in one["spec"]["containers"]
    ]
    return {container["image"] for container in found if container["name"].startswith("datacache-")}


def counted(lab: Lab, readers: list[Object]) -> list[int]:
    """How often each reader has read the model so far.

    AssertionError where it once read another, or failed.
    """
    lines = [lab.kubectl.logs(one["metadata"]["name"]).splitlines()[:-1] for one in readers]
    assert {line.split()[0] for read in lines for line in read} <= {SUM}
    return [len(read) for read in lines]


@pytest.mark.usefixtures("as_it_was")
def test_readers_and_claims_outlive_a_rollback_and_an_upgrade(
    lab: Lab, driver: Driver, driver_image: Archive, before: tuple[Path, Archive], hub: Hub
) -> None:
    hub.repo("org/upgraded", {"model.bin": MODEL})
    claims = [claim(name, "models") for name in ("made-first", "made-before", "made-after")]
    readers = [
        reader("claim-reader", claim_volume("made-first"), READ),
        reader("inline-reader", inline_volume(SOURCE), READ),
    ]
    with volumes_of(lab, SOURCE), applied(lab.kubectl, claims[0]), pods(lab, *readers):
        for number, (tree, image) in enumerate([before, (programs.TREE, driver_image)], 1):
            read = counted(lab, readers)
            driver.replace(tree, image)
            wait_for(
                lambda image=image: running(lab) == {image.name}, 60, "the last pod of the other image to end"
            )  # type: ignore[misc]
            lab.kubectl.apply(claims[number])
            fresh = [reader(f"fresh-{name}", volume) for name, volume in _volumes(claims[: number + 1])]
            with pods(lab, *fresh):
                assert {sum_in(lab, one["metadata"]["name"]) for one in fresh} == {SUM}
            wait_for(
                lambda read=read: all(
                    now > then + 10 for now, then in zip(counted(lab, readers), read, strict=True)
                ),
                30,
                "reads",
            )  # type: ignore[misc]
        for one in claims[1:]:
            lab.kubectl.delete("pvc", one["metadata"]["name"])
        print(f"\nread {counted(lab, readers)} times meanwhile, always the same")
    settled(lab, driver)


def _volumes(claims: list[Object]) -> Iterator[tuple[str, Object]]:
    yield "inline", inline_volume(SOURCE)
    for one in claims:
        yield one["metadata"]["name"], claim_volume(one["metadata"]["name"])
