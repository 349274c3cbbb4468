"""The cluster that tests share, and the images in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import images, programs
from tests.cluster.driver_image import ready
from tests.cluster.images import Archive
from tests.cluster.installed import Driver, installed
from tests.cluster.lab import Lab, running
from tests.cluster.node import Node
from tests.origins.hub import Hub

_HERE = Path(__file__).parent
# What adds a node, where pods of others would be put too; what gives the driver that they share an operator;
# what judges all that tests
# before it did; what changes that driver, and what removes it.
_LAST = (
    "test_leaving_nodes.py",
    "test_two_nodes.py",
    "test_eci.py",
    "test_rights.py",
    "test_upgrades.py",
    "test_install_document.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those at the end that have to be there."""
    items.sort(
        key=lambda item: (
            _LAST.index(item.path.name) + 1 if item.path.parent == _HERE and item.path.name in _LAST else 0
        )
    )


@pytest.fixture(scope="session")
def built() -> None:
    """Fails where no cluster can run, and says why: who calls for these tests wants them run."""
    if why := programs.obstacle():
        pytest.fail(f"no cluster can run here: {why}")


@pytest.fixture(scope="session")
def lab(built: None) -> Iterator[Lab]:
    """A cluster of one node; tests that need a second one ask for `second_node`."""
    with running() as lab:
        yield lab


@pytest.fixture(scope="session")
def second_node(lab: Lab) -> Node:
    """The second node of the cluster, there from now on."""
    return lab.nodes[1] if len(lab.nodes) > 1 else lab.add_node()


@pytest.fixture(scope="session")
def driver_image(lab: Lab) -> Archive:
    """The image of this checkout, on every node."""
    archive = ready(programs.TREE, programs.cache())
    lab.load(archive)
    return archive


@pytest.fixture(scope="session")
def sidecars(lab: Lab) -> list[Archive]:
    """The images of external-provisioner and csi-resizer, on every node."""
    archives = images.sidecars(lab.folder, lab.programs)
    lab.load(*archives)
    return archives


@pytest.fixture(scope="session")
def python_image(lab: Lab) -> Archive:
    """An image under the name that documents and examples have for their readers', on every node: those
    that tests add, too."""
    archive = images.busybox(lab.folder, "python:3.12-slim")
    lab.load(archive)
    return archive


@pytest.fixture(autouse=True)
def alive(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test during which a program of the cluster ended has failed."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").check()


@pytest.fixture(scope="session")
def hub(lab: Lab) -> Iterator[Hub]:
    """A hub that the pods of the cluster reach."""
    with Hub(addresses=lab.outside) as running_hub:
        yield running_hub


@pytest.fixture(scope="session")
def driver(lab: Lab, driver_image: Archive, sidecars: list[Archive], hub: Hub) -> Iterator[Driver]:
    """The driver, installed from the chart."""
    with installed(lab, driver_image, sidecars, hub.endpoint) as driver:
        yield driver
