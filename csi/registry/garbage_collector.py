"""What nodes and volumes that are no more have left in the cluster's objects, taken away by whoever leads."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from csi.cluster.api_server import METADATA_LIST, ApiServer, path_of
from csi.cluster.watch import pages
from csi.concurrency.background import beside
from csi.errors import DataCacheError

log = logging.getLogger("datacache.sweeping")

SWEEP_SECONDS = 300.0
_NODES = path_of("api", "v1", "nodes")


class Traces(Protocol):
    """One kind of object that names nodes. Both methods raise as `ApiServer.call`; `sweep` comes behind `nodes`."""

    kind: str
    """The kind of object, for the log."""

    def nodes(self) -> frozenset[str]:
        """The names of the nodes that stand in them now."""

    def sweep(self, gone: frozenset[str]) -> None:
        """Take away what the nodes `gone` have left, and all else that is of nobody any more."""


class Sweeper:
    """Sweeps `places`. For one process at a time, and one thread."""

    def __init__(self, server: ApiServer, places: Sequence[Traces], seconds: float = SWEEP_SECONDS) -> None:
        self._server, self._places, self._seconds = server, places, seconds
        self._missing: frozenset[str] = frozenset()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sweep every so many seconds for the block, from a thread of its own."""
        with beside(self._run, "sweeping"):
            yield

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(random.uniform(0.8 * self._seconds, self._seconds)):
            self.sweep()

    def sweep(self) -> None:
        """Look once. A node counts as gone when it was missing the last time too: kubelet may be making its object anew."""
        try:
            named = {place: found for place in self._places if (found := self._named(place)) is not None}
            standing = frozenset().union(*named.values())
            missing = standing - self._nodes() if standing else frozenset()
        except DataCacheError as error:
            log.warning("not swept", extra={"fields": {"reason": error}})
            return
        gone, self._missing = missing & self._missing, missing
        for place, names in named.items():
            with _saying(place):
                place.sweep(gone & names)

    def _named(self, place: Traces) -> frozenset[str] | None:
        with _saying(place):
            return place.nodes()
        return None

    def _nodes(self) -> frozenset[str]:
        listed = pages(self._server, _NODES, accept=METADATA_LIST)
        return frozenset(thing["metadata"]["name"] for page in listed for thing in page["items"])


@contextmanager
def _saying(place: Traces) -> Iterator[None]:
    """What the block fails with is logged: one odd object must not end the sweeping of all others."""
    try:
        yield
    except DataCacheError as error:
        log.warning("not swept", extra={"fields": {"what": place.kind, "reason": error}})
    except Exception as error:
        # A foreign exception's text is not vetted for secrets.
        log.error("not swept", extra={"fields": {"what": place.kind, "reason": type(error).__name__}})
