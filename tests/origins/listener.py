"""A small HTTP/1.1 origin: keep-alive, ranges, sendfile, faults on purpose. What it serves is its subclasses' business."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.origins.faults import Counters, Fault, Faults
from tests.origins.repositories import Content, Declared, size_of

_CHUNK = 4 << 20
_ZEROS = bytes(1 << 20)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


class Dropped(Exception):
    """The connection was cut on purpose."""


class Listener(socketserver.ThreadingTCPServer):
    """One listening socket; `name` is "hub" or "cdn". `stop` refuses new and cuts open connections, `start` takes the same port again."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(self, name: str, address: tuple[str, int], handler: type[Handler], owner: Any, faults: Faults, counters: Counters) -> None:
        self.name, self.owner, self.faults, self.counters = name, owner, faults, counters
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name=name, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        self.counters.connected(self.name, 1)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
        self.counters.connected(self.name, -1)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD through `answer`, which subclasses define."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # No timeout: a socket with one is non-blocking underneath, which sendfile does not wait for.
    server: Listener

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.server.closed(self.connection)

    def answer(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        if self.server.faults.latency:
            time.sleep(self.server.faults.latency)
        try:
            self.answer()
        except (Dropped, ConnectionError, TimeoutError):
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read counters, not logs."""

    def refused_on_purpose(self, key: str) -> bool:
        """Answer with the status fault that is in force for `key`, if any."""
        fault = self.server.faults.take("status", key, self.server.name)
        if fault:
            extra = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self.send_json({"error": "out of order on purpose"}, fault.status, extra)
        return fault is not None

    def send_json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_small(json.dumps(value).encode(), status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})

    def send_small(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_content(self, key: str, content: Content, headers: Mapping[str, str]) -> None:
        """The file, or the range of it that is asked for: 200, 206 or 416."""
        size = size_of(content)
        span = None if self.server.faults.find("ignore-range", key, self.server.name) else self._span(size)
        if span is not None and span[0] >= span[1]:
            self.send_small(b"", 416, {"Content-Range": f"bytes */{size}"})
            return
        start, end = span or (0, size)
        extra = {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if span else {}
        plain = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
        self._head(206 if span else 200, {**plain, **headers, **extra})
        if self.command != "HEAD":
            self._send_body(key, content, start, end)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _span(self, size: int) -> tuple[int, int] | None:
        """First byte and the one after the last of the wanted range; None without one (RFC 9110, 14.2: one that cannot be read is ignored)."""
        match = _RANGE.match(self.headers.get("Range", ""))
        if not match or match.groups() == ("", ""):
            return None
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def _send_body(self, key: str, content: Content, start: int, end: int) -> None:
        faults, name = self.server.faults, self.server.name
        drop = faults.find("drop", key, name) or faults.find("reset", key, name)
        stall, corrupt = (faults.find(action, key, name) for action in ("stall", "corrupt"))
        stops = sorted({start + f.after for f in (drop, stall) if f and start + f.after < end} | {end})
        with _opened(content) as file:
            position = start
            for stop in stops:
                self._send_range(key, content, file, position, stop, corrupt)
                position = stop
                if stop < end:
                    self._interrupt(drop, stall, position - start)

    def _interrupt(self, drop: Fault | None, stall: Fault | None, sent: int) -> None:
        if stall and stall.after == sent:
            self.server.faults.happened(stall)
            time.sleep(stall.seconds)
        if drop and drop.after == sent:
            self.server.faults.happened(drop)
            if drop.action == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise Dropped

    def _send_range(self, key: str, content: Content, file: int | None, start: int, end: int, corrupt: Fault | None) -> None:
        rate = self.server.faults.rate
        step = max(4096, min(_CHUNK, int(rate / 50))) if rate else _CHUNK
        while start < end:
            count = min(step, end - start)
            self.server.faults.pace(count)
            with self.server.counters.sending(key, count) as sent:
                if corrupt and start <= corrupt.after < start + count:
                    self.server.faults.happened(corrupt)
                    data = bytearray(_read(content, file, start, count))
                    data[corrupt.after - start] ^= 0xFF
                    self.connection.sendall(data)
                elif file is not None:
                    sent.count = os.sendfile(self.connection.fileno(), file, start, count)
                else:
                    self.connection.sendall(_read(content, None, start, count))
            start += sent.count


@contextlib.contextmanager
def _opened(content: Content) -> Any:
    if not isinstance(content, Path):
        yield None
        return
    descriptor = os.open(content, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(content: Content, file: int | None, start: int, count: int) -> bytes | memoryview:
    if file is not None:
        return os.pread(file, count, start)
    if isinstance(content, Declared):
        return memoryview(_ZEROS * (count // len(_ZEROS) + 1))[:count]
    assert isinstance(content, bytes)
    return memoryview(content)[start : start + count]
