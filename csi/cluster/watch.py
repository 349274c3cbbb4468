"""What changes in a collection of objects: a list, then a watch from there on, for as long as one wants.

Idle, it costs the connection and the server's bookmark about once a minute. Source: Kubernetes documentation,
"Efficient detection of changes".
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from csi.cluster.api_server import JSON, METADATA, METADATA_LIST, ApiServer, Expired, Stream, refusal
from csi.errors import ClusterUnavailable, DataCacheError

log = logging.getLogger("datacache.watch")

Told = Callable[[str, Mapping[str, Any] | None], None]
_PAGE = 100
# So that thousands of nodes neither watch anew nor come back in one moment.
_WATCH_SECONDS = (300, 600)
_FIRST_WAIT, _LONGEST_WAIT, _FORBIDDEN_WAIT = 0.5, 30.0, 60.0
# Pods start in storms: what is wanted newly is gathered for this long before the server is asked.
_GATHER_SECONDS = 0.2


class Watch:
    """Calls `told(name, object)` from a thread of its own for what was added or changed, with None for what is gone.

    What counts as a change is another generation; with `status` every other version.

    `selector` gives the label selector as it is wanted now, None for nothing to watch; after `renew` it is asked again, and
    what it selects newly is told, too. With `metadata` objects come with their metadata alone. With `everything` the first list is told,
    otherwise it is where the watch begins; a list after a gap is told where it differs from what was known. Objects of several
    namespaces may have one name; their metadata tells them apart.
    """

    def __init__(
        self,
        server: ApiServer,
        path: str,
        told: Told,
        *,
        selector: Callable[[], str | None] = lambda: "",
        metadata: bool = True,
        everything: bool = False,
        status: bool = False,
    ) -> None:
        self._server, self._path, self._told, self._selector = server, path, told, selector
        self._accept = (METADATA_LIST, METADATA) if metadata else (JSON, JSON)
        self._counts = "resourceVersion" if status else "generation"
        self._known: dict[str, tuple[str, str]] = {}
        self._guard = threading.Lock()
        self._asked_anew, self._ended = threading.Event(), False
        self._stream: Stream | None = None
        self._selected: str | None = None
        self._silent, self._version, self._wait = not everything, "", _FIRST_WAIT

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch for the block. What happens in it is told, even where the server could not be reached at its beginning."""
        self._begin()
        thread = threading.Thread(target=self._run, name="cluster-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended = True
            self.renew()
            thread.join()

    def renew(self) -> None:
        """Ask for the selector again."""
        with self._guard:
            self._asked_anew.set()
            if self._stream:
                self._stream.end()

    def _begin(self) -> None:
        if not self._silent:
            return
        try:
            self._selected = self._selector()
            if self._selected is not None:
                self._version = self._list(self._selected)
        except DataCacheError as error:
            log.warning("watch not begun, it is tried again", extra={"fields": {"objects": self._path, "reason": error}})
        self._silent = False

    def _run(self) -> None:
        while not self._ended:
            if self._asked_anew.is_set():
                time.sleep(_GATHER_SECONDS)
            self._asked_anew.clear()
            if self._ended:
                return
            try:
                self._once()
                self._rest(1.0)
            except Expired:
                self._version = ""
            except DataCacheError as error:
                log.warning("watch broken off, it is tried again", extra={"fields": {"objects": self._path, "reason": error}})
                self._rest(self._wait if isinstance(error, ClusterUnavailable) else _FORBIDDEN_WAIT)
                self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def _rest(self, longest: float) -> None:
        if not self._ended:
            self._asked_anew.wait(random.uniform(longest / 4, longest))

    def _once(self) -> None:
        selected = self._selector()
        if selected != self._selected:
            self._selected, self._version = selected, ""
        if selected is None:
            self._known.clear()
            if not self._ended:
                self._asked_anew.wait()
            return
        if not self._version:
            self._version = self._list(selected)
        self._follow(selected)

    def _list(self, selected: str) -> str:
        """Tell what differs from what was known, and return the version that the watch goes on from."""
        found: dict[str, tuple[str, str]] = {}
        for page in pages(self._server, self._path, selected, _PAGE, self._accept[0]):
            for thing in page["items"]:
                found[_key(thing["metadata"])] = self._note(thing)
            version = page["metadata"]["resourceVersion"]
        for name in self._known.keys() - found.keys():
            self._tell(name, None)
        self._known = found
        return str(version)

    def _note(self, thing: Mapping[str, Any]) -> tuple[str, str]:
        meta = thing["metadata"]
        identity = (str(meta["uid"]), str(meta.get(self._counts, 0)))
        if self._known.get(_key(meta)) != identity:
            self._tell(_key(meta), thing)
        return identity

    def _follow(self, selected: str) -> None:
        seconds = random.randint(*_WATCH_SECONDS)
        query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": self._version, "timeoutSeconds": str(seconds)}
        if selected:
            query["labelSelector"] = selected
        with self._server.stream(self._path, query, seconds + 30.0, self._accept[1]) as stream:
            self._wait = _FIRST_WAIT
            with self._guard:
                self._stream = stream
                if self._asked_anew.is_set():
                    return
            try:
                for event in stream:
                    self._take(event["type"], event["object"])
            finally:
                with self._guard:
                    self._stream = None

    def _take(self, kind: str, thing: Mapping[str, Any]) -> None:
        if kind == "ERROR":
            raise refusal(int(thing.get("code", 500)), thing)
        name = _key(thing["metadata"])
        if kind == "DELETED":
            self._known.pop(name, None)
            self._tell(name, None)
        elif kind != "BOOKMARK":
            self._known[name] = self._note(thing)
        self._version = str(thing["metadata"]["resourceVersion"])

    def _tell(self, name: str, thing: Mapping[str, Any] | None) -> None:
        if not self._silent and not self._ended:
            self._told(name.rpartition("/")[2], thing)


def _key(meta: Mapping[str, Any]) -> str:
    """What tells an object from the others of the collection: its name, behind its namespace where it has one."""
    name = str(meta.get("name", ""))
    return f"{meta['namespace']}/{name}" if meta.get("namespace") else name


def pages(server: ApiServer, path: str, selector: str = "", size: int = _PAGE, accept: str = JSON, fields: str = "") -> Iterator[dict[str, Any]]:
    """The lists of a collection, `size` objects each, by name and all of one moment; `selector` is of labels, `fields` of fields.

    Raises Expired where that moment is too long ago, and as `call`.
    """
    chosen = {"labelSelector": selector, "fieldSelector": fields}
    query = {"limit": str(size), **{key: value for key, value in chosen.items() if value}}
    while True:
        page = server.call("GET", path, query, accept=accept)
        yield {**page, "items": page["items"] or []}
        token = page["metadata"].get("continue", "")
        if not token:
            return
        query["continue"] = token
