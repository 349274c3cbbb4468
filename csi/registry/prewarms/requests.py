"""What the operator has nodes fill: one order for each DataCache that no node has yet, and how far its nodes are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from csi.registry.datacaches.data_caches import DataCache
from csi.registry.prewarms.prewarms import State


@dataclass(frozen=True)
class OrderState:
    """How far the nodes of an order are, all of them together. `message` says what one waits for or fails with.

    `placed` is false where there is no node that could have it, which may change.
    """

    state: State = State.PENDING
    percent: int = 0
    message: str = ""
    placed: bool = True


class PrewarmOrders(Protocol):
    """Orders to nodes, one for each DataCache at most. Thread-safe; in a cluster all raise ClusterUnavailable and ClusterForbids."""

    def place(self, cache: DataCache) -> OrderState:
        """Have the nodes that the spec selects, or else one, make ready what the cache is to hold; how far that is."""

    def drop(self, cache: DataCache) -> None:
        """Take the order back, so that nodes may evict the image; one that is not there is no error."""

    def watch(self, changed: Callable[[str], None]) -> AbstractContextManager[None]:
        """For the block, call `changed(name)` with the name of a cache's object, from a thread of its own, soon after its nodes said something."""
