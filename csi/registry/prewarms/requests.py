"""Prewarm requests as the operator makes them: at most one per DataCache.

A request is kept as long as nodes must fill the image or keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from csi.registry.datacaches.data_caches import DataCache
from csi.registry.prewarms.prewarms import PrewarmState


@dataclass(frozen=True)
class PrewarmProgress:
    """Progress of a request, over all its nodes.

    `message` says what one of them waits for or fails with.

    `has_node` is false while no node can fill the cache.
    """

    state: PrewarmState = PrewarmState.PENDING
    percent: int = 0
    message: str = ""
    has_node: bool = True

    @property
    def has_started(self) -> bool:
        """Whether a node has begun to fill; one that only waits has not."""
        return self.state is not PrewarmState.PENDING or self.percent > 0


class PrewarmRequests(Protocol):
    """Prewarm requests to nodes, at most one per DataCache.

    Thread-safe; in a cluster all methods raise ClusterUnavailable and ClusterForbids.
    """

    def submit(self, cache: DataCache) -> PrewarmProgress:
        """Request that nodes fill the cache's content, and return the progress.

        These are the nodes that the spec selects, or else one node.
        """

    def cancel(self, name: str) -> None:
        """Withdraw the request for the DataCache whose object has this name; a missing one is no error.

        Nodes may evict the image then. The DataCache itself may be gone.
        """

    def list_data_caches(self) -> set[str]:
        """Return the names of the DataCaches that have a request, deleted ones included.

        In a cluster these are the requests known within `watch`.
        """

    def watch(self, on_change: Callable[[str], None]) -> AbstractContextManager[None]:
        """Call `on_change(name)` from a thread during the block, soon after nodes reported.

        `name` is that of the DataCache's object.
        """
