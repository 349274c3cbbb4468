"""Orders that come and change while a node works through them: what is filled, and what is said."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import pytest

from csi.errors import Busy
from csi.registry.prewarms.prewarms import PrewarmedCache, PrewarmRequest, PrewarmState
from tests.csi.registry.prewarms.kinds import FakePrewarms, order
from tests.csi.worker.in_process import COMMITS
from tests.node_plugin.fills.test_fills import eventually
from tests.node_plugin.node import HUB, Node
from tests.node_plugin.prewarm.prefetching import MODEL, Ahead, fills


class Storm(FakePrewarms):
    """Orders of which one has changed whenever they have been read."""

    def __init__(self, name: str) -> None:
        super().__init__({"pool": "gpu"})
        self._name = name

    def list_requests(self) -> list[PrewarmRequest]:
        found = super().list_requests()
        self.tell(self._name)
        return found


@pytest.mark.parametrize("changing", ["none-of-this-node", "one", "two"])
def test_while_orders_change_without_an_end_others_are_filled(node: Node, changing: str) -> None:
    with ExitStack() as stack:
        ahead = Ahead(stack, Storm(changing))
        other = PrewarmedCache({**HUB, "revision": COMMITS[1]})
        wanted = {"one": MODEL, "two": other, "three": PrewarmedCache(HUB, secret_name="none")}
        for name, cache in wanted.items():
            ahead.orders.put(order(name, cache))
        ahead.start(node)
        for name in wanted.keys() - {changing, "three"}:
            assert eventually(ahead.is_(PrewarmState.READY, f"default/{name}")), name
        assert eventually(ahead.is_(PrewarmState.FAILED, "default/three"))


def test_an_order_that_has_to_wait_comes_behind_the_others(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_plugin.prewarm.active_requests._MIN_WORK_SECONDS", 0.0)
    monkeypatch.setattr("node_plugin.prewarm.active_requests._WORK_SHARE", 0.0)
    storm = Storm("none-of-this-node")
    monkeypatch.setattr(storm, "read_secret", busy)
    with ExitStack() as stack:
        ahead = Ahead(stack, storm)
        storm.put(order("first", PrewarmedCache(HUB, secret_name="slow")))
        storm.put(order("second", MODEL))
        ahead.start(node)
        assert eventually(ahead.is_(PrewarmState.READY, "default/second"))


def busy(namespace: str, name: str) -> Mapping[str, str]:
    raise Busy("not yet")


def test_a_fill_goes_on_while_orders_of_others_come_and_those_are_said(
    node: Node, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_plugin.prewarm.active_requests._MIN_WORK_SECONDS", 0.05)
    monkeypatch.setattr("node_plugin.prewarm.cache_prewarmer._SLICE_SECONDS", 0.05)
    node.source.go_fill.clear()
    ahead.start(node)
    ahead.orders.put(order("one", MODEL))
    assert eventually(ahead.is_(PrewarmState.FILLING))
    for number in range(20):
        ahead.orders.put(order(f"later-{number}", MODEL))
    assert all(eventually(ahead.is_(PrewarmState.PENDING, f"default/later-{number}")) for number in range(20))
    assert ahead.is_(PrewarmState.FILLING)()
    assert fills(node) == 1
    node.source.go_fill.set()
    assert all(eventually(ahead.is_(PrewarmState.READY, f"default/later-{number}")) for number in range(20))
    assert fills(node) == 1
