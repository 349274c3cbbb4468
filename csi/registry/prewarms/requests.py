"""What the operator has nodes fill: one order for each DataCache that no node has yet, and how far its nodes are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from csi.registry.datacaches.data_caches import DataCache
from csi.registry.prewarms.prewarms import PrewarmState


@dataclass(frozen=True)
class PrewarmProgress:
    """How far the nodes of an order are, all of them together. `message` says what one waits for or fails with.

    `has_node` is false where there is no node that could have it, which may change.
    """

    state: PrewarmState = PrewarmState.PENDING
    percent: int = 0
    message: str = ""
    has_node: bool = True


class PrewarmRequests(Protocol):
    """Orders to nodes, one for each DataCache at most. Thread-safe; in a cluster all raise ClusterUnavailable and ClusterForbids."""

    def submit(self, cache: DataCache) -> PrewarmProgress:
        """Have the nodes that the spec selects, or else one, make ready what the cache is to hold; how far that is."""

    def cancel(self, cache: DataCache) -> None:
        """Take the order back, so that nodes may evict the image; one that is not there is no error."""

    def watch(self, on_change: Callable[[str], None]) -> AbstractContextManager[None]:
        """For the block, call `on_change(name)` with the name of a cache's object, from a thread of its own, soon after its nodes said something."""
