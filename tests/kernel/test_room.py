"""A store that is too small for everything: the least recently used images go, those that are mounted
never."""

from __future__ import annotations

import os

import grpc
import pytest

from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, Machine
from tests.kernel.requests import OK
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

NO_SPACE = grpc.StatusCode.RESOURCE_EXHAUSTED
SIZE = 16 * MIB
# Room for three images with their few blocks of metadata, not for four.
BUDGET = "56Mi"


@pytest.fixture
def machine(start: Start, hub: Hub) -> Machine:
    """A node with room for three of the hub's images, `a` to `f`."""
    for name in "abcdef":
        hub.repo(f"org/{name}", {"model.bin": name.encode() + os.urandom(SIZE - 1)})
    return start("--store-size", BUDGET)


def show(machine: Machine, name: str) -> grpc.StatusCode:
    return machine.inline(name, {"repoId": f"org/{name}"})[0]


def use(machine: Machine, *names: str) -> None:
    """Mount the images one after another, each no longer than that."""
    for name in names:
        assert show(machine, name) is grpc.StatusCode.OK
        assert machine.unpublish(name) == (OK, "")


def cached(machine: Machine) -> set[str]:
    """Names of the repositories whose images are in the store."""
    found = set()
    for image in machine.sealed():
        data = image.read_bytes()
        found |= {name for name in "abcdef" if data[-SIZE:][:1] == name.encode()}
    return found


def test_the_least_recently_used_image_goes_first(machine: Machine) -> None:
    use(machine, "a", "b", "c", "a")
    assert cached(machine) == {"a", "b", "c"}
    use(machine, "d")
    assert cached(machine) == {"a", "c", "d"}
    use(machine, "e")
    assert cached(machine) == {"a", "d", "e"}


def test_a_mounted_image_never_goes(machine: Machine, hub: Hub) -> None:
    assert show(machine, "a") is grpc.StatusCode.OK
    use(machine, "b", "c", "d", "e")
    assert cached(machine) == {"a", "d", "e"}
    assert show(machine, "d") is show(machine, "e") is grpc.StatusCode.OK

    code, message = machine.inline("f", {"repoId": "org/f"})
    assert code is NO_SPACE
    assert "needs 16" in message
    assert "its budget is 56" in message
    assert "mounted, prewarmed or being filled" in message
    assert cached(machine) == {"a", "d", "e"}
    assert machine.images() == [image.parent for image in machine.sealed()]
    for name in "ade":
        assert (machine.target(name) / "model.bin").read_bytes()[:1] == name.encode()

    assert machine.unpublish("a") == (OK, "")
    assert show(machine, "f") is grpc.StatusCode.OK
    assert cached(machine) == {"d", "e", "f"}


def test_an_evicted_image_is_fetched_anew_when_it_is_wanted(machine: Machine, hub: Hub) -> None:
    use(machine, "a", "b", "c", "d")
    hub.counters.reset()
    use(machine, "a")
    assert hub.counters.bytes_sent["org/a/model.bin"] >= SIZE


def test_what_was_mounted_before_a_restart_is_not_evicted_after_it(machine: Machine) -> None:
    assert show(machine, "a") is grpc.StatusCode.OK
    machine.plugins.node.stop()
    machine.restart_node()
    use(machine, "b", "c", "d", "e")
    assert "a" in cached(machine)
    assert (machine.target("a") / "model.bin").read_bytes()[:1] == b"a"
