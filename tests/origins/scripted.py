"""An HTTP server whose every answer the test writes itself."""

from __future__ import annotations

import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Answers by path: `behave[path](handler)` (`behave["PUT path"]`).

    Remembers (path, Authorization, Range) of every request.
    """

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1", tls: Path | None = None) -> None:
        super().__init__((address, 0), Answer)
        self.behave: dict[str, object] = {}
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.accepted = 0
        scheme = "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://{address}:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def get_request(self) -> tuple[socket.socket, object]:
        accepted = super().get_request()
        self.accepted += 1
        return accepted

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization"), self.headers.get("Range")))
        self.server.behave[self.path.partition("?")[0]](self)  # type: ignore[operator]

    def do_PUT(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization"), None))
        self.server.behave[f"PUT {self.path}"](self)  # type: ignore[operator]

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def span(self) -> tuple[int, int]:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        return int(first), int(last) + 1

    def log_message(self, format: str, *args: object) -> None:
        pass
