"""An API server that keeps objects in memory and every write as it was asked for, over HTTP: what a
program says to a cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

UID = "0f0e0d0c-0b0a-4908-8706-050403020100"
MADE = "2023-11-14T22:13:20Z"
_COLLECTIONS = (
    "cachevolumes",
    "cachepins",
    "cacheprewarms",
    "datacaches",
    "nodes",
    "secrets",
    "events",
    "leases",
)
_TIMES = ("renewTime", "acquireTime")


class RecordedCluster:
    """The `objects` by their paths, and the `writes`: method, path, query, content type and body of each,
    in order."""

    def __init__(self, objects: Mapping[str, Any] | None = None) -> None:
        self.objects: dict[str, Any] = dict(objects or {})
        self.writes: list[dict[str, Any]] = []
        self.url = ""
        self._guard = threading.Lock()

    def answer(self, method: str, target: str, kind: str, content: bytes) -> tuple[int, Any]:
        """Status and body of the answer."""
        url = urlsplit(target)
        body = _timeless(json.loads(content)) if content else None
        with self._guard:
            if method == "GET":
                return self._got(url.path)
            query = dict(parse_qsl(url.query))
            self.writes.append(
                {"method": method, "path": url.path, "query": query, "type": kind, "body": body}
            )
            return self._written(method, url.path, body)

    def _got(self, path: str) -> tuple[int, Any]:
        if path in self.objects:
            return 200, self.objects[path]
        group, _, plural = path.rpartition("/")
        inside = [
            kept
            for at, kept in sorted(self.objects.items())
            if at.startswith(group) and at.split("/")[-2] == plural
        ]
        if plural in _COLLECTIONS:
            return 200, {"kind": "List", "metadata": {"resourceVersion": "7"}, "items": inside}
        return 404, {"kind": "Status", "message": "not found", "details": {"name": plural}}

    def _written(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        status = path.endswith("/status")
        at = path.removesuffix("/status") if status else path
        if method == "POST":
            at = f"{path}/{body['metadata']['name']}"
        if method == "DELETE":
            return 200, self.objects.pop(at, {"kind": "Status"})
        old = self.objects.get(at)
        if method == "POST" and old is not None:
            return 409, {"kind": "Status", "message": "already exists", "details": {"name": "it"}}
        kept = _merged(old or {}, body)
        made = {"uid": UID, "generation": 1, "creationTimestamp": MADE, "resourceVersion": "7"}
        kept["metadata"] = made | kept.get("metadata", {})
        self.objects[at] = kept
        return 200, kept


def _merged(old: Any, new: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    whole = {**old, **{key: _merged(old.get(key, {}), value) for key, value in new.items()}}
    return {key: value for key, value in whole.items() if value is not None}


def _timeless(body: Any) -> Any:
    """`body` without the times that a Lease has of a clock of its own."""
    if isinstance(body, dict):
        return {key: "a time" if key in _TIMES else _timeless(value) for key, value in body.items()}
    return body


@contextmanager
def recorded_cluster(objects: Mapping[str, Any] | None = None) -> Iterator[RecordedCluster]:
    """Serve one on loopback for the block."""
    cluster = RecordedCluster(objects)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = cluster.answer(
                self.command, self.path, self.headers.get("Content-Type", ""), content
            )
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
