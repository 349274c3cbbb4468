"""A small HTTP/1.1 origin: keep-alive, ranges, sendfile, faults on purpose.

What it serves is its subclasses' business.
"""

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
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.origins.faults import Counters, Fault, Faults
from tests.origins.repositories import Content, Declared, size_of

_CHUNK = 4 << 20
_ZEROS = bytes(1 << 20)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


@dataclass(frozen=True)
class Part:
    """`data` are the bytes of a file from byte `at` on."""

    data: bytes
    at: int


class Dropped(Exception):
    """The connection was cut on purpose."""


class Listener(socketserver.ThreadingTCPServer):
    """One listening socket; `name` is "hub" or "cdn".

    `stop` refuses new and cuts open connections, `start` takes the same port again.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 512

    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        handler: type[Handler],
        owner: Any,
        faults: Faults,
        counters: Counters,
    ) -> None:
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
        """Answer with the status fault that is in force for `key`, if any.

        Raises Dropped where there is to be no answer.
        """
        if self.server.faults.take("hang-up", key, self.server.name):
            raise Dropped
        fault = self.server.faults.take("status", key, self.server.name)
        if fault:
            extra = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self.send_json({"error": "out of order on purpose"}, fault.status, extra)
        return fault is not None

    def send_json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_small(
            json.dumps(value).encode(),
            status,
            {"Content-Type": "application/json; charset=utf-8", **(headers or {})},
        )

    def send_small(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_content(self, key: str, content: Content, headers: Mapping[str, str]) -> None:
        """The file, or the range of it that is asked for: 200, 206 or 416."""
        size = size_of(content)
        span = None if self.ignores_range(key) else self._span(size)
        if span is not None and span[0] >= span[1]:
            self.send_small(b"", 416, {"Content-Range": f"bytes */{size}"})
        elif not self.redirected_on_purpose(key):
            self.send_part(
                key,
                content,
                span,
                size,
                {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers},
            )

    def ignores_range(self, key: str) -> bool:
        """Whether a Range header is not to be looked at; it happened then."""
        return (
            "Range" in self.headers
            and self.server.faults.take("ignore-range", key, self.server.name) is not None
        )

    def redirected_on_purpose(self, key: str) -> bool:
        """Answer with a redirect to the same address, if that fault is in force for `key`."""
        if self.server.faults.take("redirect-loop", key, self.server.name) is None:
            return False
        self.send_small(b"", 302, {"Location": self.path})
        return True

    def send_part(
        self,
        key: str,
        content: Content | Part,
        span: tuple[int, int] | None,
        size: int,
        headers: Mapping[str, str],
    ) -> None:
        """Bytes `span` of a file of `size` bytes as 206, or all of them as 200, with the faults of bodies
        and their lengths."""
        faults, name = self.server.faults, self.server.name
        start, end = span or (0, size)
        wrong, cut = faults.take("wrong-length", key, name), faults.take("truncate", key, name)
        sent = min(end, start + cut.after) if cut else end
        chunked = faults.take("no-length", key, name) is not None
        length = (
            {"Transfer-Encoding": "chunked"}
            if chunked
            else {"Content-Length": str(sent - start + bool(wrong and not span))}
        )
        extra = {"Content-Range": f"bytes {start}-{end - 1}/{size + bool(wrong)}"} if span else {}
        self.close_connection |= wrong is not None
        self._head(206 if span else 200, {**headers, **length, **extra})
        if self.command == "HEAD":
            return
        if chunked and sent > start:
            self.wfile.write(b"%x\r\n" % (sent - start))
        self._send_body(key, content, start, sent)
        if chunked:
            self.wfile.write(b"\r\n0\r\n\r\n" if sent > start else b"0\r\n\r\n")

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _span(self, size: int) -> tuple[int, int] | None:
        """First byte and the one after the last of the wanted range.

        None without one (RFC 9110, 14.2: one that cannot be read is ignored).
        """
        match = _RANGE.match(self.headers.get("Range", ""))
        if not match or match.groups() == ("", ""):
            return None
        first, last = match.groups()
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def _send_body(self, key: str, content: Content | Part, start: int, end: int) -> None:
        faults, name = self.server.faults, self.server.name
        kinds = ("drop", "reset", "stall", "trickle")
        here = [f for f in (faults.find(kind, key, name) for kind in kinds) if f and start + f.after < end]
        corrupt = faults.find("corrupt", key, name)
        with _opened(content) as file:
            position = start
            for stop in sorted({start + f.after for f in here} | {end}):
                self._send_range(key, content, file, position, stop, corrupt)
                position = stop
                for fault in here:
                    if stop == start + fault.after and self.server.faults.happens(fault):
                        self._interrupt(fault)
                        if fault.action == "trickle":
                            self._trickle(key, content, file, position, end, fault.seconds)
                            return

    def _interrupt(self, fault: Fault) -> None:
        if fault.action == "stall":
            time.sleep(fault.seconds)
        if fault.action == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault.action in ("drop", "reset"):
            raise Dropped

    def _trickle(
        self, key: str, content: Content | Part, file: int | None, start: int, end: int, seconds: float
    ) -> None:
        for position in range(start, end):
            self._send_range(key, content, file, position, position + 1, None)
            time.sleep(seconds)

    def _send_range(
        self, key: str, content: Content | Part, file: int | None, start: int, end: int, corrupt: Fault | None
    ) -> None:
        rate = self.server.faults.rate
        step = max(4096, min(_CHUNK, int(rate / 50))) if rate else _CHUNK
        while start < end:
            count = min(step, end - start)
            self.server.faults.pace(count)
            with self.server.counters.sending(key, count) as sent:
                if corrupt and start <= corrupt.after < start + count and self.server.faults.happens(corrupt):
                    data = bytearray(_read(content, file, start, count))
                    data[corrupt.after - start] ^= 0xFF
                    self.connection.sendall(data)
                elif file is not None:
                    sent.count = os.sendfile(self.connection.fileno(), file, start, count)
                else:
                    self.connection.sendall(_read(content, None, start, count))
            start += sent.count


@contextlib.contextmanager
def _opened(content: Content | Part) -> Any:
    if not isinstance(content, Path):
        yield None
        return
    descriptor = os.open(content, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(content: Content | Part, file: int | None, start: int, count: int) -> bytes | memoryview:
    if file is not None:
        return os.pread(file, count, start)
    if isinstance(content, Part):
        return memoryview(content.data)[start - content.at : start - content.at + count]
    if isinstance(content, Declared):
        return memoryview(_ZEROS * (count // len(_ZEROS) + 1))[:count]
    assert isinstance(content, bytes)
    return memoryview(content)[start : start + count]
