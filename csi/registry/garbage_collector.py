"""Garbage collection by the leading controller.

It removes what deleted nodes and volumes have left in the cluster's objects.
"""

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

log = logging.getLogger("datacache.garbage_collection")

GARBAGE_COLLECTION_INTERVAL = 300.0
_NODES_PATH = api_path("api", "v1", "nodes")


class NodeReferences(Protocol):
    """References to nodes in one kind of object.

    Both methods raise as `ApiServer.call`; `remove_stale` is called after `list_nodes`.
    """

    kind: str
    """Kind of object, for the log."""

    def list_nodes(self) -> frozenset[str]:
        """Return the names of the nodes that the objects refer to now."""

    def remove_stale(self, gone: frozenset[str]) -> None:
        """Remove references to the nodes `gone`, and those that are stale for another reason.

        Such as holders of pins whose volume does not exist any more.
        """


class GarbageCollector:
    """Collector that runs over `references`. For one process at a time, and one thread."""

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
        """Collect at intervals during the block, in a thread."""
        with background_thread(self._run, "garbage collection"):
            yield

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(random.uniform(0.8 * self._interval, self._interval)):
            self.collect()

    def collect(self) -> None:
        """Collect once.

        A node counts as gone only if it was missing the last time too, since kubelet may be re-creating its
        object.
        """
        try:
            named = {
                reference: names
                for reference in self._references
                if (names := self._list_referenced_nodes(reference)) is not None
            }
            referenced = frozenset().union(*named.values())
            missing = referenced - self._list_cluster_nodes() if referenced else frozenset()
        except DataCacheError as error:
            log.warning("garbage collection failed", extra={"fields": {"reason": error}})
            return
        gone, self._missing_before = missing & self._missing_before, missing
        for references, names in named.items():
            with _suppress_and_log_failures(references):
                references.remove_stale(gone & names)

    def _list_referenced_nodes(self, references: NodeReferences) -> frozenset[str] | None:
        with _suppress_and_log_failures(references):
            return references.list_nodes()
        # Reached only after a failure: this kind of object is left alone this time.
        return None

    def _list_cluster_nodes(self) -> frozenset[str]:
        listed = list_pages(self._server, _NODES_PATH, accept=METADATA_LIST)
        return frozenset(obj["metadata"]["name"] for page in listed for obj in page["items"])


@contextmanager
def _suppress_and_log_failures(references: NodeReferences) -> Iterator[None]:
    """Suppress and log failures, so that one malformed object does not stop the collection of others."""
    try:
        yield
    except DataCacheError as error:
        log.warning("garbage collection failed", extra={"fields": {"kind": references.kind, "reason": error}})
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        log.error(
            "garbage collection failed",
            extra={"fields": {"kind": references.kind, "reason": type(error).__name__}},
        )
