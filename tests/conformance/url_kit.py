"""Plain URLs, and Metalink documents of them, against a local web server: each place is a folder of it,
for bearers of one token."""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Self
from urllib.parse import quote, unquote, urlsplit
from xml.sax.saxutils import escape, quoteattr

from csi.errors import CorruptContent, DataCacheError, PermissionDenied, SourceChanged
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.urls import UrlFile, UrlSpec
from csi.sources.source import Source
from csi.sources.urls.source import UrlSource
from tests.conformance.http_kit import HttpKit
from tests.conformance.kit import Tree
from tests.origins.web import Site, WebServer

TOKEN = "url_conformance"
_PROGRAM = """
from csi.sources.urls.source import UrlSource as open
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.web.stop()

    def place(self, tree: Tree) -> CacheSpec:
        self._count += 1
        folder = f"/place-{self._count}/"
        files = {path: data for path, data in tree.items() if isinstance(data, bytes)}
        self.web.files |= {folder + path: data for path, data in files.items()}
        self.web.sites[folder] = Site({self.token})
        sums = {
            path: hashlib.sha256(data).hexdigest() if self.verifies else "" for path, data in files.items()
        }
        return CacheSpec(
            UrlSpec(
                tuple(
                    UrlFile(f"{self.web.url}{quote(folder + path)}", sums[path], path)
                    for path in sorted(files)
                )
            )
        )

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


class MetalinkKit(UrlKit):
    """The files of a place are named, with sizes and sums, by a document in another folder, which may be
    read where they may not."""

    lists_by_reading = False
    # Of a file that nobody asked about the document's sum is all that is known.
    changed = CorruptContent

    def __init__(self, name: str = "URL by metalink") -> None:
        super().__init__(name)
        self.verifies = True

    def place(self, tree: Tree) -> CacheSpec:
        files = super().place(tree).source
        assert isinstance(files, UrlSpec)
        spec = CacheSpec(UrlSpec(metalink=f"{self.web.url}/documents/place-{self._count}/files.meta4"))
        self.web.sites[_beside(spec)] = Site({self.token})
        self._describe(spec)
        return spec

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        super().change(spec, path, data)
        self._describe(spec)

    def remove(self, spec: CacheSpec) -> None:
        super().remove(spec)
        del self.web.files[_document(spec)]

    def forbid(self, spec: CacheSpec) -> None:
        super().forbid(spec)
        self.web.sites[_beside(spec)].closed = True

    def forbid_reading(self, spec: CacheSpec) -> None:
        super().forbid(spec)

    def _describe(self, spec: CacheSpec) -> None:
        folder = _folder(spec)
        inside = {
            path.removeprefix(folder): data
            for path, data in self.web.files.items()
            if path.startswith(folder) and isinstance(data, bytes)
        }
        self.web.files[_document(spec)] = metalink(
            {path: (self.web.url + quote(folder + path), data) for path, data in inside.items()}
        )


def metalink(files: dict[str, tuple[str, bytes]]) -> bytes:
    """A document of files by their paths, each with its URL, size and sum."""
    listed = "".join(
        f"<file name={quoteattr(path)}><size>{len(data)}</size><hash "
        f"type='sha-256'>{hashlib.sha256(data).hexdigest()}</hash>"
        f"<url priority='1'>{escape(url)}</url></file>\n"
        for path, (url, data) in files.items()
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<metalink xmlns="urn:ietf:params:xml:ns:metalink">\n{listed}</metalink>\n'.encode()  # noqa: E501


def _document(spec: CacheSpec) -> str:
    assert isinstance(spec.source, UrlSpec)
    return urlsplit(spec.source.metalink).path


def _folder(spec: CacheSpec) -> str:
    assert isinstance(spec.source, UrlSpec)
    if spec.source.metalink:
        return f"/{_document(spec).split('/')[2]}/"
    return "/" + unquote(urlsplit(spec.source.files[0].url).path).split("/")[1] + "/"


def _beside(spec: CacheSpec) -> str:
    """The folder of the document."""
    return _document(spec).rpartition("/")[0] + "/"
