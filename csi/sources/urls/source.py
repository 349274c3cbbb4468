"""Plain files by URL as a source: what they are is told by the headers of a GET of their first byte, or by reading them whole."""

from __future__ import annotations

import email.utils
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from csi.concurrency.rate_limit import Pace
from csi.destinations.destinations import Destinations
from csi.errors import DataCacheError, InvalidParameter, OutOfRange, PermissionDenied, SourceChanged, SourceNotFound, Unauthenticated
from csi.manifest.manifest import DEFAULT_MTIME_NS, Entry, Kind, Manifest, build
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.urls import MOST_FILES, UrlFile, UrlSpec
from csi.sources.http.connections import Connections, drop, shown_site, site
from csi.sources.http.file_urls import Addresses, Answer
from csi.sources.http.range_reader import RangeReader
from csi.sources.urls.full_read import read_whole
from csi.sources.urls.metalink import Document, smallest_of_each_site
from csi.values import whole_number

_FILL_CONNECTIONS = 16
_ASKED_AT_ONCE = 8
_ALL = {"Accept-Encoding": "identity"}
_FIRST_BYTE = {"Range": "bytes=0-0", **_ALL}
_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)$")


@dataclass(frozen=True)
class _Facts:
    """What tells one state of a file from another; `sha256` where it took reading the file whole to learn its size."""

    size: int
    etag: str
    modified: str
    sha256: str = ""


class UrlSource:
    """Files of HTTP servers, read with `token` as a bearer's (None: as anybody). Implements `csi.sources.source.Source`."""

    def __init__(self, spec: CacheSpec, token: str | None, where: Destinations | None = None) -> None:
        """Raises InvalidParameter when `spec` is of another source, or one token would go to several hosts."""
        if not isinstance(spec.source, UrlSpec):
            raise InvalidParameter(f"{spec.source.shown} is no URL")
        if token and len({site(file.url) for file in spec.source.files}) > 1:
            raise InvalidParameter(
                "url names several hosts, or http and https of one, and the Secret has one accessToken; name them in sources, each with its own token"
            )
        self._spec, self._files, self._token = spec, {file.path: file for file in spec.source.files}, token
        self._sizes: dict[str, int] = {}
        self._connections = Connections(_FILL_CONNECTIONS, where)
        self._wait = Pace(spec.bandwidth_limit).take if spec.bandwidth_limit else lambda count: None
        self._read: frozenset[Entry] = frozenset()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._document: Document | None = None
        if spec.source.metalink:
            self._document = Document(spec.source, self._connections, headers, self._refusal, self._wait)
            # Without `refusal`: of so many files, the one that is refused has to be named.
            self._addresses = Addresses(self._url, headers, unchanged=_unchanged, home=site(spec.source.metalink))
        else:
            self._addresses = Addresses(self._url, headers, self._refusal, unchanged=_unchanged)

    def pin(self) -> CacheSpec:
        """The spec itself: a file at a URL has no revisions."""
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """Ask for the first byte of each file, but for those whose size and sha256 a Metalink document tells.

        One whose server tells no length, or nothing by which a change could be seen (ETag, Last-Modified, a sha256 in the spec), is
        read whole, which tells its sha256 too. A document's files cost their entries alone: 600 bytes where path and URL have 120.
        """
        entries = itertools.chain(self._listed(self._document) if self._document else (), self._asked())
        manifest = build(entries, pinned.to_context(), preserve_ownership=pinned.preserve_ownership)
        self._read = frozenset(entry for entry in manifest.files if entry.path in self._files)
        return manifest

    def _asked(self) -> Iterator[Entry]:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
            yield from threads.map(self._entry, self._files.values())

    def _listed(self, document: Document) -> Iterator[Entry]:
        """Those files that need not be asked for; the others are in `_files` then."""
        self._files, self._sizes = {}, {}
        for listed in document.files():
            file = UrlFile(listed.url, listed.sha256, listed.path)
            if listed.size is not None and listed.sha256:
                yield _made(file, _Facts(listed.size, "", ""))
            else:
                if len(self._files) == MOST_FILES:
                    raise OutOfRange(
                        f"{self._spec.source.shown} tells no size and sha-256 of over {MOST_FILES} files, and each would have to be asked for; "
                        "write them into the document"
                    )
                self._files[file.path] = file
                if listed.size is not None:
                    self._sizes[file.path] = listed.size

    def _checked(self, entry: Entry) -> Entry:
        told = self._sizes.get(entry.path, entry.size)
        if told != entry.size:
            where, what = shown_site(self._url(entry)), self._spec.source.shown
            raise SourceChanged(f"{what} says that {entry.path!r} has {told} bytes, {where} sends {entry.size}; put the document right")
        return entry

    def prove(self, manifest: Manifest) -> None:
        """Read one byte of each file that has one; this source's own `resolve` has done so.

        Of a Metalink document's files, of the smallest of each site, and of the document.
        """
        files: Iterable[Entry] = manifest.files
        if self._document:
            self._document.prove()
            files = smallest_of_each_site((self._url(entry), entry) for entry in manifest.files)
        with self.reader(manifest) as reader:
            for entry in files:
                if entry.size and entry not in self._read:
                    reader.read_into(entry, 0, memoryview(bytearray(1)))

    def reader(self, manifest: Manifest) -> RangeReader:
        """A reader of the files; all readers of this source share what redirects led to."""
        return RangeReader(self._connections, self._addresses)

    def close(self) -> None:
        """Let go of all connections."""
        self._connections.close()

    def _entry(self, file: UrlFile) -> Entry:
        return self._checked(_made(file, self._facts(file)))

    def _url(self, entry: Entry) -> str:
        """Asked for before it is resolved, an entry has a file; a document's, read in another process, has its URL in its digest."""
        file = self._files.get(entry.path)
        return file.url if file else str(_identity(entry)[0])

    def _facts(self, file: UrlFile) -> _Facts:
        asked = Entry(file.path, Kind.FILE)
        with RangeReader(self._connections, self._addresses) as reader:
            answer, address = reader.ask(asked, _FIRST_BYTE, wanted=1)
            whole = answer.status in (200, 206) and (_size(answer) is None or not (file.sha256 or _tells_changes(answer)))
            if whole:
                drop(answer)
                answer, address = reader.ask(asked, _ALL)
        try:
            if answer.status not in (200, 206, 416):
                raise self._addresses.refused(answer, address, asked)
            size, sha256 = _size(answer), ""
            if whole or size is None:
                size, sha256 = read_whole(answer, address.url, self._wait, self._connections.tempo)
            return _Facts(size, answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""), sha256)
        finally:
            drop(answer)

    def _refusal(self, status: int, headers: Mapping[str, str]) -> DataCacheError | None:
        what = self._spec.source.shown
        if status == 401:
            hint = "it refuses the token: put a valid one in" if self._token else "it wants one: put it in"
            return Unauthenticated(f"{what}: {hint} the Secret (key `accessToken`)")
        if status == 403:
            return PermissionDenied(f"{what}: its server lets this volume not read it; check the token's rights, or that the address has not ended")
        key = "metalink" if self._document else "url"
        return SourceNotFound(f"{what} is not there; check {key}") if status in (404, 410) else None


def _made(file: UrlFile, facts: _Facts) -> Entry:
    identity = json.dumps([file.url, facts.etag, facts.modified, facts.size])
    sha256 = file.sha256 or facts.sha256
    digest = f"claimed:{sha256} {identity}" if sha256 else f"token:url {identity}"
    return Entry(file.path, Kind.FILE, size=facts.size, mtime_ns=_mtime(facts.modified), digest=digest)


def _identity(entry: Entry) -> list[Any]:
    """The URL, ETag, Last-Modified and size that were put into the digest."""
    return list(json.loads(entry.digest.partition(" ")[2]))


def _tells_changes(answer: Answer) -> bool:
    return bool(answer.headers.get("ETag") or answer.headers.get("Last-Modified"))


def _size(answer: Answer) -> int | None:
    """The file's size by the headers; None where they do not tell."""
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        return None
    total = _TOTAL.match(answer.headers.get("Content-Range", ""))
    if total and answer.status in (206, 416):
        return whole_number(total[1])
    return whole_number(answer.headers.get("Content-Length")) if answer.status == 200 else None


def _mtime(modified: str) -> int:
    """Nanoseconds since 1970 of a Last-Modified header; the default where there is none."""
    try:
        return int(email.utils.parsedate_to_datetime(modified).timestamp()) * 10**9
    except (TypeError, ValueError):
        return DEFAULT_MTIME_NS


def _unchanged(entry: Entry, headers: Mapping[str, str]) -> bool:
    """By the ETag, else by the time; what the listing had not says nothing. False where the listing had one and the answer has neither."""
    _, etag, modified, _ = _identity(entry)
    if etag and headers.get("ETag"):
        return bool(etag == headers["ETag"])
    if modified and headers.get("Last-Modified"):
        return bool(modified == headers["Last-Modified"])
    return not (etag or modified)
