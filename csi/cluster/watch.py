"""Changes in a collection of objects: a list, then watches that continue from it.

Idle, it costs one connection and the server's bookmark about once a minute. Source: Kubernetes documentation,
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

from csi.cluster.api_server import (
    JSON,
    METADATA,
    METADATA_LIST,
    ApiServer,
    ResourceExpired,
    WatchStream,
    error_from_status,
)
from csi.errors import ClusterUnavailable, DataCacheError

log = logging.getLogger("datacache.watch")

OnChange = Callable[[str, Mapping[str, Any] | None], None]
_PAGE_SIZE = 100
# Random, so that thousands of nodes do not start new watches at the same moment.
_WATCH_TIMEOUT_RANGE = (300, 600)
_MIN_BACKOFF, _MAX_BACKOFF, _FORBIDDEN_BACKOFF = 0.5, 30.0, 60.0
# Pods start in storms: new selectors are collected for this long before the server is asked.
_DEBOUNCE_SECONDS = 0.2


class Watch:
    """Watch that reports added, changed and deleted objects of a collection from a thread.

    It calls `on_change(name, object)`, with None for a deleted object. An object has changed when its
    generation has; with `include_status` when its resource version has.

    `selector()` returns the label selector, None for nothing to watch. `refresh_selector` makes the watch
    call it again and report newly selected objects. With `full_objects` the objects of the first list are
    reported, too, and all are complete; otherwise that list is only the watch's starting point, and objects
    carry their metadata alone. A list after a gap is reported where it differs from the known state. Objects
    of several namespaces may share a name; their metadata tells them apart.
    """

    def __init__(
        self,
        server: ApiServer,
        path: str,
        on_change: OnChange,
        *,
        selector: Callable[[], str | None] = lambda: "",
        full_objects: bool = False,
        include_status: bool = False,
    ) -> None:
        self._server, self._path, self._on_change, self._selector = server, path, on_change, selector
        self._accept = (JSON, JSON) if full_objects else (METADATA_LIST, METADATA)
        self._version_field = "resourceVersion" if include_status else "generation"
        self._known: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._renewed, self._is_stopped = threading.Event(), False
        self._stream: WatchStream | None = None
        self._selected: str | None = None
        self._is_silent, self._version, self._backoff = not full_objects, "", _MIN_BACKOFF

    @contextmanager
    def run_in_background(self) -> Iterator[None]:
        """Watch during the block.

        Changes in it are reported even if the server cannot be reached at first.
        """
        self._list_initial()
        thread = threading.Thread(target=self._run, name="cluster-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_stopped = True
            self.refresh_selector()
            thread.join()

    def refresh_selector(self) -> None:
        """Call `selector` again and watch what it selects now."""
        # Under the lock a stream is either stopped here, or sees _renewed right after it was opened.
        with self._lock:
            self._renewed.set()
            if self._stream:
                self._stream.stop()

    def _list_initial(self) -> None:
        if not self._is_silent:
            return
        try:
            self._selected = self._selector()
            if self._selected is not None:
                self._version = self._list_and_report_changes(self._selected)
        except DataCacheError as error:
            log.warning(
                "watch not started; retrying",
                extra={"fields": {"objects": self._path, "reason": error}},
            )
        self._is_silent = False

    def _run(self) -> None:
        while not self._is_stopped:
            if self._renewed.is_set():
                time.sleep(_DEBOUNCE_SECONDS)
            self._renewed.clear()
            if self._is_stopped:
                return
            try:
                self._watch_once()
                self._wait_with_jitter(1.0)
            except ResourceExpired:
                # The next round starts with a list.
                self._version = ""
            except DataCacheError as error:
                log.warning(
                    "watch interrupted; retrying",
                    extra={"fields": {"objects": self._path, "reason": error}},
                )
                self._wait_with_jitter(
                    self._backoff if isinstance(error, ClusterUnavailable) else _FORBIDDEN_BACKOFF
                )
                self._backoff = min(2 * self._backoff, _MAX_BACKOFF)

    def _wait_with_jitter(self, max_seconds: float) -> None:
        if not self._is_stopped:
            self._renewed.wait(random.uniform(max_seconds / 4, max_seconds))

    def _watch_once(self) -> None:
        selected = self._selector()
        if selected != self._selected:
            self._selected, self._version = selected, ""
        if selected is None:
            self._known.clear()
            if not self._is_stopped:
                self._renewed.wait()
            return
        if not self._version:
            self._version = self._list_and_report_changes(selected)
        self._follow_stream(selected)

    def _list_and_report_changes(self, selected: str) -> str:
        """List the objects, report differences to the known state, and return the version to watch from."""
        current: dict[str, tuple[str, str]] = {}
        for page in list_pages(self._server, self._path, selected, _PAGE_SIZE, self._accept[0]):
            for obj in page["items"]:
                current[_object_key(obj["metadata"])] = self._report_if_changed(obj)
            version = page["metadata"]["resourceVersion"]
        for name in self._known.keys() - current.keys():
            self._report(name, None)
        self._known = current
        return str(version)

    def _report_if_changed(self, obj: Mapping[str, Any]) -> tuple[str, str]:
        meta = obj["metadata"]
        identity = (str(meta["uid"]), str(meta.get(self._version_field, 0)))
        if self._known.get(_object_key(meta)) != identity:
            self._report(_object_key(meta), obj)
        return identity

    def _follow_stream(self, selected: str) -> None:
        seconds = random.randint(*_WATCH_TIMEOUT_RANGE)
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        if selected:
            query["labelSelector"] = selected
        with self._server.stream(self._path, query, seconds + 30.0, self._accept[1]) as stream:
            self._backoff = _MIN_BACKOFF
            with self._lock:
                self._stream = stream
                # `renew` was called before there was a stream to stop.
                if self._renewed.is_set():
                    return
            try:
                for event in stream:
                    self._process_event(event["type"], event["object"])
            finally:
                with self._lock:
                    self._stream = None

    def _process_event(self, kind: str, obj: Mapping[str, Any]) -> None:
        if kind == "ERROR":
            raise error_from_status(int(obj.get("code", 500)), obj)
        name = _object_key(obj["metadata"])
        if kind == "DELETED":
            self._known.pop(name, None)
            self._report(name, None)
        elif kind != "BOOKMARK":
            self._known[name] = self._report_if_changed(obj)
        self._version = str(obj["metadata"]["resourceVersion"])

    def _report(self, name: str, obj: Mapping[str, Any] | None) -> None:
        if not self._is_silent and not self._is_stopped:
            self._on_change(name.rpartition("/")[2], obj)


def _object_key(meta: Mapping[str, Any]) -> str:
    """Return the key of an object in the collection: its name, after its namespace if it has one."""
    name = str(meta.get("name", ""))
    return f"{meta['namespace']}/{name}" if meta.get("namespace") else name


def list_pages(
    server: ApiServer,
    path: str,
    selector: str = "",
    size: int = _PAGE_SIZE,
    accept: str = JSON,
    fields: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the pages of a collection, `size` objects each, sorted by name and all from the same snapshot.

    `selector` selects by labels, `fields` by fields.

    Raises ResourceExpired if the snapshot is too old, and the errors of `ApiServer.call`.
    """
    selectors = {"labelSelector": selector, "fieldSelector": fields}
    query = {"limit": str(size), **{key: value for key, value in selectors.items() if value}}
    while True:
        page = server.call("GET", path, query, accept=accept)
        yield {**page, "items": page["items"] or []}
        token = page["metadata"].get("continue", "")
        if not token:
            return
        query["continue"] = token
