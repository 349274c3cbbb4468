"""A reverse proxy before a real server, to have faults and counters for one that has none: `with
FaultProxy(("127.0.0.1", port)) as proxy: ...`.

The Host header goes on as it came, so that addresses which were signed for the proxy (SigV4) are right at the
server, too.
"""

from __future__ import annotations

import http.client
import re
from typing import Self
from urllib.parse import unquote

from tests.origins.faults import Counters, Faults
from tests.origins.listener import Handler, Listener, Part

ADDRESS = "127.0.0.1"
_HOP_BY_HOP = (
    "connection",
    "keep-alive",
    "transfer-encoding",
    "content-length",
    "content-range",
    "date",
    "server",
)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)$")


class _ProxyHandler(Handler):
    """Asks the server and answers what it answered.

    The key of a fault is the path without its first slash.
    """

    def answer(self) -> None:
        key = unquote(self.path.partition("?")[0]).lstrip("/")
        self.server.counters.asked(self.command.lower(), self.server.name, self.headers.get("Authorization"))
        if self._has_expired():
            self.server.counters.ended()
            self.send_small(
                b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
                403,
                {"Content-Type": "application/xml"},
            )
            return
        if self.refused_on_purpose(key) or self.redirected_on_purpose(key):
            return
        status, headers, body = self._ask(self.ignores_range(key))
        kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
        match = _RANGE.match(headers.get("Content-Range", ""))
        if self.command == "GET" and status == 206 and match:
            start, end = int(match[1]), int(match[2]) + 1
            self.send_part(key, Part(body, start), (start, end), int(match[3]), kept)
        elif self.command == "GET" and status == 200:
            self.send_part(key, Part(body, 0), None, len(body), kept)
        elif self.command == "HEAD":
            self._head(status, {**kept, "Content-Length": headers.get("Content-Length", "0")})
        else:
            self.send_small(body, status, kept)

    do_PUT = do_POST = do_DELETE = Handler.do_GET

    def _has_expired(self) -> bool:
        proxy: FaultProxy = self.server.owner
        if "Signature=" not in self.path:
            return False
        proxy.signed.add(self.path)
        # Once: signed anew within the same second, an address is the same.
        ended = self.path in proxy.expired
        proxy.expired.discard(self.path)
        return ended

    def _ask(self, whole: bool) -> tuple[int, http.client.HTTPMessage, bytes]:
        proxy: FaultProxy = self.server.owner
        length = int(self.headers.get("Content-Length", "0"))
        connection = http.client.HTTPConnection(*proxy.server, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection" and not (whole and name.lower() == "range"):
                    connection.putheader(name, value)
            connection.endheaders(self.rfile.read(length) if length else None)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


class FaultProxy:
    """The proxy before `server` (host and port)."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.faults, self.counters = Faults(), Counters()
        self.signed, self.expired = set[str](), set[str]()
        self._listener: Listener | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, if it does not yet; after a `stop`, on the same port."""
        if self._listener is None:
            self._listener = Listener(
                "proxy", (ADDRESS, self.port), _ProxyHandler, self, self.faults, self.counters
            )
            self.port = self._listener.port

    def stop(self) -> None:
        """Refuse new connections and cut the open ones; counters stay."""
        if self._listener:
            self._listener.stop()
            self._listener = None

    def expire(self) -> None:
        """Every signed address that was used so far is refused once."""
        self.expired |= self.signed

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}"
