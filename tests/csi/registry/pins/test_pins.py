"""What every registry of pins must do: the one in a cluster, on a real API server, and the fake that other
tests use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.registry.pins.kubernetes import KubernetesPinRegistry
from csi.registry.pins.pins import CachePin, PinHolder, PinRegistry
from tests.csi.registry.kinds import COMMIT
from tests.csi.registry.pins.fake_pins import FakePins

HUB = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main", ("*.json", "a,b")))
NODE, OTHER, VOLUME = (
    PinHolder("node", "node-a.example"),
    PinHolder("node", "node-b"),
    PinHolder("volume", "dc-1"),
)
Open = Callable[[], PinRegistry]


def pin(namespace: str = "default", commit: str = COMMIT, digest: str = "a" * 64) -> CachePin:
    return CachePin.from_specs(
        namespace, HUB, CacheSpec(HubSpec("HuggingFace/Model", "org/name", commit, ("*.json", "a,b"))), digest
    )


@pytest.fixture(params=["fake", "cluster"])
def open_pins(request: pytest.FixtureRequest) -> Open:
    """Opens the registry; each call is another program."""
    if request.param == "fake":
        fake = FakePins()
        return lambda: fake
    cluster = request.getfixturevalue("cluster")
    return lambda: KubernetesPinRegistry(cluster.client())


def holders(registry: PinRegistry, namespace: str = "default") -> set[PinHolder] | None:
    kept = registry.get(namespace, pin().name)
    return None if kept is None else set(kept.holders)


def test_what_was_held_first_counts_for_all_who_come(open_pins: Open) -> None:
    registry, other = open_pins(), open_pins()
    assert registry.get("default", pin().name) is None
    assert registry.add_holder(pin(), NODE) == pin()
    for holder in (OTHER, VOLUME, NODE):
        assert other.add_holder(pin(commit="b" * 40, digest="b" * 64), holder) == pin()
    assert other.get("default", pin().name) == pin()
    assert holders(registry) == {NODE, OTHER, VOLUME}


def test_it_goes_with_its_last_holder(open_pins: Open) -> None:
    registry = open_pins()
    for holder in (NODE, VOLUME):
        registry.add_holder(pin(), holder)
    for _ in range(2):
        registry.remove_holder("default", pin().name, NODE)
        assert holders(registry) == {VOLUME}
    registry.remove_holder("default", pin().name, OTHER)
    assert holders(registry) == {VOLUME}
    for _ in range(2):
        registry.remove_holder("default", pin().name, VOLUME)
        assert holders(registry) is None
    assert registry.add_holder(pin(commit="b" * 40, digest="b" * 64), NODE).digest == "b" * 64


def test_namespaces_have_answers_of_their_own(open_pins: Open) -> None:
    registry = open_pins()
    registry.add_holder(pin(), NODE)
    assert registry.get("kube-public", pin().name) is None
    registry.add_holder(pin("kube-public", digest="b" * 64), NODE)
    registry.remove_holder("default", pin().name, NODE)
    assert [kept.digest for kept in registry.list_all()] == ["b" * 64]


SOURCES = [
    CacheSpec(NasSpec("nas", "/x", "4.0", 1, 2, 0.5, 9, 3, 4), preserve_ownership=True),
    CacheSpec(
        CompositeSpec(
            (("a", HubSpec("HuggingFace/Model", "org/a")), ("b", NasSpec("nas", "/x"))), (("a", 5 * 2**20),)
        )
    ),
]


@pytest.mark.parametrize("spec", SOURCES)
def test_a_pin_of_any_source_is_found_as_it_was_held(open_pins: Open, spec: CacheSpec) -> None:
    kept = CachePin.from_specs("default", spec, spec, "c" * 64)
    open_pins().add_holder(kept, NODE)
    found = open_pins().get("default", kept.name)
    assert found == kept
    assert found.apply_to(spec) == spec
    assert found.holders[NODE] > 1.7e9


def test_of_many_who_hold_at_once_one_decides_and_all_hold(open_pins: Open) -> None:
    for _ in range(3):
        gate, answers = threading.Barrier(6), []

        def hold(number: int, gate: threading.Barrier = gate, answers: list[Any] = answers) -> None:
            registry, mine = open_pins(), pin(commit=f"{number:040x}", digest=f"{number:064x}")
            gate.wait(30)
            answers.append(registry.add_holder(mine, PinHolder("node", f"node-{number}")))

        together(hold, 6)
        assert len(answers) == 6
        assert len({kept.digest for kept in answers}) == 1
        assert len(holders(open_pins()) or ()) == 6
        together(
            lambda number: open_pins().remove_holder(
                "default", pin().name, PinHolder("node", f"node-{number}")
            ),
            6,
        )
        assert holders(open_pins()) is None


def test_who_comes_while_another_leaves_holds_what_is_there_then(open_pins: Open) -> None:
    """The pin is either the old one, with the newcomer, or a new one that the newcomer made.

    It is never gone with somebody on it.
    """
    for turn in range(10):
        old, new = pin(digest="a" * 64), pin(commit="b" * 40, digest="b" * 64)
        open_pins().add_holder(old, NODE)
        gate, kept = threading.Barrier(2), []

        def leave(gate: threading.Barrier = gate) -> None:
            registry = open_pins()
            gate.wait(30)
            registry.remove_holder("default", pin().name, NODE)

        def come(gate: threading.Barrier = gate, kept: list[Any] = kept, new: CachePin = new) -> None:
            registry = open_pins()
            gate.wait(30)
            kept.append(registry.add_holder(new, OTHER))

        together(lambda number: (leave, come)[number](), 2)
        found = open_pins().get("default", pin().name)
        assert found is not None, turn
        assert set(found.holders) == {OTHER}, turn
        assert [found.digest] == [one.digest for one in kept]
        open_pins().remove_holder("default", pin().name, OTHER)


def together(what: Callable[[int], object], count: int) -> None:
    threads = [threading.Thread(target=what, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
