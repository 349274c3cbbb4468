"""A plain web server on loopback, with faults on purpose: `with WebServer() as web: web.files["/a/b.bin"]
= b"..."`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Self
from urllib.parse import unquote

from tests.origins.faults import Counters, Faults
from tests.origins.listener import Handler, Listener
from tests.origins.repositories import Content

ADDRESS = "127.0.0.1"


@dataclass
class Site:
    """What a request may get: files below a folder, for bearers of `tokens` (empty: for all).

    `closed` answers 403 to everybody.
    """

    tokens: set[str] = field(default_factory=set)
    closed: bool = False


class WebHandler(Handler):
    """Files by their path. The key of a fault is the path without its first slash."""

    def answer(self) -> None:
        web: WebServer = self.server.owner
        web.clients.add(self.client_address[0])
        path = unquote(self.path.partition("?")[0])
        key = path.lstrip("/")
        given = self.headers.get("Authorization")
        self.server.counters.asked("get", self.server.name, given)
        site = next((site for folder, site in web.sites.items() if path.startswith(folder)), Site())
        if site.tokens and (given or "").removeprefix("Bearer ") not in site.tokens:
            self.send_json({"error": "who are you"}, 401)
        elif site.closed:
            self.send_json({"error": "not for you"}, 403)
        elif path not in web.files:
            self.send_json({"error": "no such file"}, 404)
        elif not self.refused_on_purpose(key):
            self.send_content(key, web.files[path], web.told(path))


class WebServer:
    """The server; a file's ETag is its content's. `clients` are the addresses that asked."""

    def __init__(self, address: str = ADDRESS) -> None:
        self.address, self.clients = address, set[str]()
        self.files: dict[str, Content] = {}
        self.sites: dict[str, Site] = {}
        self.faults, self.counters = Faults(), Counters()
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
                "web", (self.address, self.port), WebHandler, self, self.faults, self.counters
            )
            self.port = self._listener.port

    def stop(self) -> None:
        """Refuse new connections and cut the open ones; files and counters stay."""
        if self._listener:
            self._listener.stop()
            self._listener = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def told(self, path: str) -> dict[str, str]:
        """The headers that tell one state of a file from another."""
        content = self.files[path]
        text = content if isinstance(content, bytes) else str(content).encode()
        return {
            "ETag": f'"{hashlib.md5(text, usedforsecurity=False).hexdigest()}"',
            "Last-Modified": formatdate(1_700_000_000, usegmt=True),
        }
