"""Prewarming on a node, over orders that tests give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from csi.destinations.allow_list import CACHE_PREWARMS, AllowList
from csi.registry.prewarms.prewarms import PrewarmedCache, PrewarmState
from node_plugin.prewarm.prewarming import PrewarmLoop
from tests.csi.registry.prewarms.kinds import FakePrewarms
from tests.node_plugin.node import HUB, Node

MODEL = PrewarmedCache(HUB)
KEY = "default/one"


class Ahead:
    """Starts prewarming on nodes, over one set of orders."""

    def __init__(self, stack: ExitStack, orders: FakePrewarms | None = None) -> None:
        self.orders = orders or FakePrewarms({"pool": "gpu"})
        self._stack = stack

    def start(self, node: Node, retry_seconds: float = 60.0) -> PrewarmLoop:
        """Prewarming on `node`, until the test ends or `stop`."""
        preparation = node.prepare_for(AllowList(policy_subject=CACHE_PREWARMS), refresh_moving=True)
        made = PrewarmLoop(
            self.orders, preparation, node.store, node.images.check_node, min_backoff=retry_seconds
        )
        node.protected.add(made.list_sealed)
        self._running = self._stack.enter_context(ExitStack())
        self._running.enter_context(made.run_in_background())
        return made

    def stop(self) -> None:
        self._running.close()

    def states(self, key: str = KEY) -> list[dict[str, Any]]:
        """The entries of the object's status."""
        return list(self.orders.status(key).get("nodes", []))

    def is_(self, state: PrewarmState, key: str = KEY) -> Callable[[], bool]:
        return lambda: [entry["state"] for entry in self.states(key)] == [state.value]

    @property
    def message(self) -> str:
        return "".join(entry.get("message", "") for entry in self.states())


def fills(node: Node) -> int:
    return node.source.operations.count("fill-image")
