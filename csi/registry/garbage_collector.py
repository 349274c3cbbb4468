"""What nodes and volumes that are no more have left in the cluster's objects, taken away by whoever leads."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from csi.cluster.api_server import METADATA_LIST, ApiServer, api_path
from csi.cluster.watch import list_pages
from csi.concurrency.background import background_thread
from csi.errors import DataCacheError

log = logging.getLogger("datacache.sweeping")

GARBAGE_COLLECTION_INTERVAL = 300.0
_NODES_PATH = api_path("api", "v1", "nodes")


class NodeReferences(Protocol):
    """One kind of object that names nodes. Both methods raise as `ApiServer.call`; `remove_nodes` comes behind `list_nodes`."""

    kind: str
    """The kind of object, for the log."""

    def list_nodes(self) -> frozenset[str]:
        """The names of the nodes that stand in them now."""

    def remove_nodes(self, gone: frozenset[str]) -> None:
        """Take away what the nodes `gone` have left, and all else that is of nobody any more."""


class GarbageCollector:
    """Sweeps `places`. For one process at a time, and one thread."""

    def __init__(
        self,
        server: ApiServer,
        references: Sequence[NodeReferences],
        interval: float = GARBAGE_COLLECTION_INTERVAL,
    ) -> None:
        self._server, self._references, self._interval = server, references, interval
        self._missing_before: frozenset[str] = frozenset()

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Sweep every so many seconds for the block, from a thread of its own."""
        with background_thread(self._run, "sweeping"):
            yield

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(random.uniform(0.8 * self._interval, self._interval)):
            self.collect()

    def collect(self) -> None:
        """Look once. A node counts as gone when it was missing the last time too: kubelet may be making its object anew."""
        try:
            named = {
                place: found
                for place in self._references
                if (found := self._list_referenced_nodes(place)) is not None
            }
            standing = frozenset().union(*named.values())
            missing = standing - self._list_cluster_nodes() if standing else frozenset()
        except DataCacheError as error:
            log.warning("not swept", extra={"fields": {"reason": error}})
            return
        gone, self._missing_before = missing & self._missing_before, missing
        for place, names in named.items():
            with _log_failures(place):
                place.remove_nodes(gone & names)

    def _list_referenced_nodes(self, place: NodeReferences) -> frozenset[str] | None:
        with _log_failures(place):
            return place.list_nodes()
        return None

    def _list_cluster_nodes(self) -> frozenset[str]:
        listed = list_pages(self._server, _NODES_PATH, accept=METADATA_LIST)
        return frozenset(thing["metadata"]["name"] for page in listed for thing in page["items"])


@contextmanager
def _log_failures(place: NodeReferences) -> Iterator[None]:
    """What the block fails with is logged: one odd object must not end the sweeping of all others."""
    try:
        yield
    except DataCacheError as error:
        log.warning("not swept", extra={"fields": {"what": place.kind, "reason": error}})
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        log.error("not swept", extra={"fields": {"what": place.kind, "reason": type(error).__name__}})
