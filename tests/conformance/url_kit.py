"""Plain URLs against a local web server: each place is a folder of it, for bearers of one token."""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from csi.errors import DataCacheError, PermissionDenied, SourceChanged
from csi.sources.source import Source
from csi.sources.url import UrlSource
from csi.spec.cache import CacheSpec
from csi.spec.url import UrlFile, UrlSpec
from tests.conformance.http_kit import HttpKit
from tests.conformance.kit import Tree
from tests.origins.web import Site, WebServer

TOKEN = "url_conformance"
_PROGRAM = """
from csi.sources.url import UrlSource as open
"""


class UrlKit(HttpKit):
    """Files of one server; "URL with sha256" names the sum of each."""

    token = TOKEN
    lists_by_reading = True
    pins_revisions = False
    forbidden: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    unreadable: tuple[type[DataCacheError], ...] = (PermissionDenied,)
    changed: type[DataCacheError] = SourceChanged
    idle_connections = 0

    def __init__(self, name: str = "URL") -> None:
        self.name = name
        self.verifies = "sha256" in name
        self._count = 0

    def __enter__(self) -> Self:
        self.origin = self.web = WebServer()
        self.web.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.web.stop()

    def place(self, tree: Tree) -> CacheSpec:
        self._count += 1
        folder = f"/place-{self._count}/"
        files = {path: data for path, data in tree.items() if isinstance(data, bytes)}
        self.web.files |= {folder + path: data for path, data in files.items()}
        self.web.sites[folder] = Site({self.token})
        sums = {path: hashlib.sha256(data).hexdigest() if self.verifies else "" for path, data in files.items()}
        return CacheSpec(UrlSpec(tuple(UrlFile(f"{self.web.url}{quote(folder + path)}", sums[path], path) for path in sorted(files))))

    @property
    def credential(self) -> str | None:
        return self.token

    def open(self, spec: CacheSpec, credential: str | None) -> Source:
        return UrlSource(spec, credential)

    def environment(self) -> dict[str, str]:
        return {}

    def program(self) -> str:
        return _PROGRAM

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        self.web.files[f"/{self.key(spec, path)}"] = data

    def remove(self, spec: CacheSpec) -> None:
        folder = _folder(spec)
        self.web.files = {path: data for path, data in self.web.files.items() if not path.startswith(folder)}

    def forbid(self, spec: CacheSpec) -> None:
        self.web.sites[_folder(spec)].closed = True

    forbid_reading = forbid

    def expire(self) -> bool:
        return False

    def key(self, spec: CacheSpec, path: str) -> str:
        """What faults and counters call a file."""
        return _folder(spec).lstrip("/") + path


def _folder(spec: CacheSpec) -> str:
    assert isinstance(spec.source, UrlSpec)
    return "/" + unquote(urlsplit(spec.source.files[0].url).path).split("/")[1] + "/"
