"""Plain files by URL.

A file is described by the response headers of a GET of its first byte, or by reading it completely.
"""

from __future__ import annotations

import email.utils
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from csi.concurrency.rate_limit import RateLimiter
from csi.destinations.destinations import Destinations
from csi.errors import (
    DataCacheError,
    InvalidParameter,
    OutOfRange,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
)
from csi.manifest.manifest import DEFAULT_MTIME_NS, Entry, EntryKind, Manifest, build_manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.urls import MAX_URLS, UrlFile, UrlSpec
from csi.sources.http.connections import Connections, discard
from csi.sources.http.file_urls import FileUrls, Response
from csi.sources.http.range_reader import RangeReader
from csi.sources.http.sites import format_site, parse_site
from csi.sources.source import DEFAULT_CONNECTIONS, Source
from csi.sources.urls.full_read import read_size_and_sha256
from csi.sources.urls.metalink import MetalinkDocument, pick_smallest_per_site
from csi.values import parse_decimal

_MAX_CONCURRENT_REQUESTS = 8
_IDENTITY_HEADERS = {"Accept-Encoding": "identity"}
# A GET of one byte instead of a HEAD: it proves that the bytes can be read, and signed URLs and some servers
# allow no HEAD.
_FIRST_BYTE_HEADERS = {"Range": "bytes=0-0", **_IDENTITY_HEADERS}
_CONTENT_RANGE_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)$")


@dataclass(frozen=True)
class _FileFacts:
    """What distinguishes one state of a file from another.

    `sha256` is set if the file had to be read completely.
    """

    size: int
    etag: str
    last_modified: str
    sha256: str = ""


class UrlSource(Source):
    """Files of HTTP servers, read with `token` as a bearer token (None: anonymously)."""

    def __init__(
        self,
        spec: CacheSpec,
        token: str | None,
        destinations: Destinations | None = None,
        max_connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        """Raise InvalidParameter if `spec` has another source, or one token would go to several hosts."""
        if not isinstance(spec.source, UrlSpec):
            raise InvalidParameter(f"{spec.source.display_name} is not a URL source")
        if token and len({parse_site(file.url) for file in spec.source.files}) > 1:
            raise InvalidParameter(
                "url names several hosts, or http and https of one, and the Secret has one accessToken; "
                "name them in sources, each with its own token"
            )
        self._spec, self._files, self._token = spec, {file.path: file for file in spec.source.files}, token
        self._document_sizes: dict[str, int] = {}
        self._connections = Connections(max_connections, destinations)
        self._wait = (
            RateLimiter(spec.bandwidth_limit).wait_for if spec.bandwidth_limit else lambda count: None
        )
        self._probed_entries: frozenset[Entry] = frozenset()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._document: MetalinkDocument | None = None
        if spec.source.metalink:
            self._document = MetalinkDocument(
                spec.source, self._connections, headers, self._error_for_status, self._wait
            )
            # Without `error_for_status`: its errors name the document, but one of so many files has to be
            # named.
            self._file_urls = FileUrls(
                self._get_url,
                headers,
                is_unchanged=_is_unchanged,
                origin_site=parse_site(spec.source.metalink),
            )
        else:
            self._file_urls = FileUrls(
                self._get_url, headers, self._error_for_status, is_unchanged=_is_unchanged
            )

    def pin(self) -> CacheSpec:
        """Return the spec itself: a file at a URL has no revisions."""
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """Request the first byte of each file, except those whose size and sha256 are in a Metalink document.

        A file is read completely, which also gives its sha256, if its server sends no length, or nothing by
        which a change could be detected (ETag, Last-Modified, a sha256 in the spec). Memory for a document's
        files: the entries, 600 bytes for path and URL of 120.
        """
        entries = itertools.chain(
            self._iter_document_entries(self._document) if self._document else (), self._probe_files()
        )
        manifest = build_manifest(entries, pinned.to_context(), preserve_ownership=pinned.preserve_ownership)
        self._probed_entries = frozenset(entry for entry in manifest.files if entry.path in self._files)
        return manifest

    def _probe_files(self) -> Iterator[Entry]:
        with ThreadPoolExecutor(_MAX_CONCURRENT_REQUESTS) as threads:
            yield from threads.map(self._probe_file, self._files.values())

    def _iter_document_entries(self, document: MetalinkDocument) -> Iterator[Entry]:
        """Yield the files that need no request, and collect the others in `_files`."""
        self._files, self._document_sizes = {}, {}
        for document_file in document.iter_files():
            file = UrlFile(document_file.url, document_file.sha256, document_file.path)
            if document_file.size is not None and document_file.sha256:
                # No request: the sha256 in the document is enough to verify the bytes of the fill.
                yield _build_entry(file, _FileFacts(document_file.size, "", ""))
            else:
                if len(self._files) == MAX_URLS:
                    raise OutOfRange(
                        f"{self._spec.source.display_name} lacks size or sha-256 of over {MAX_URLS} files, "
                        "and each would need a request; write them into the document"
                    )
                self._files[file.path] = file
                if document_file.size is not None:
                    self._document_sizes[file.path] = document_file.size

    def _check_document_size(self, entry: Entry) -> Entry:
        document_size = self._document_sizes.get(entry.path, entry.size)
        if document_size != entry.size:
            host, display_name = format_site(self._get_url(entry)), self._spec.source.display_name
            raise SourceChanged(
                f"{display_name} says that {entry.path!r} has {document_size} bytes, "
                f"{host} sends {entry.size}; correct the document"
            )
        return entry

    def check_read_access(self, manifest: Manifest) -> None:
        """Read one byte of each non-empty file that `resolve` of this source has not just read.

        For a Metalink document: of the smallest file of each site, and of the document.
        """
        files: Iterable[Entry] = manifest.files
        if self._document:
            self._document.check_read_access()
            files = pick_smallest_per_site((self._get_url(entry), entry) for entry in manifest.files)
        with self.open_reader(manifest) as reader:
            for entry in files:
                if entry.size and entry not in self._probed_entries:
                    reader.read_into(entry, 0, memoryview(bytearray(1)))

    def open_reader(self, manifest: Manifest) -> RangeReader:
        """Open a reader of the files; all readers of this source share redirect targets."""
        return RangeReader(self._connections, self._file_urls)

    def close(self) -> None:
        self._connections.close()

    def _probe_file(self, file: UrlFile) -> Entry:
        return self._check_document_size(_build_entry(file, self._fetch_facts(file)))

    def _get_url(self, entry: Entry) -> str:
        """Return the URL of an entry.

        Before `resolve` it is that of its file; for a document's entry read in another process it is in the
        digest.
        """
        file = self._files.get(entry.path)
        return file.url if file else str(_parse_identity(entry)[0])

    def _fetch_facts(self, file: UrlFile) -> _FileFacts:
        entry = Entry(file.path, EntryKind.FILE)
        with RangeReader(self._connections, self._file_urls) as reader:
            response, file_url = reader.get_response(entry, _FIRST_BYTE_HEADERS, max_bytes=1)
            must_read_all = response.status in (200, 206) and (
                _parse_size(response) is None or not (file.sha256 or _has_change_token(response))
            )
            if must_read_all:
                discard(response)
                response, file_url = reader.get_response(entry, _IDENTITY_HEADERS)
        try:
            # 416: an empty file has no first byte; its size is in Content-Range.
            if response.status not in (200, 206, 416):
                raise self._file_urls.response_error(response, file_url, entry)
            size, sha256 = _parse_size(response), ""
            if must_read_all or size is None:
                size, sha256 = read_size_and_sha256(
                    response, file_url.url, self._wait, self._connections.baseline
                )
            return _FileFacts(
                size, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), sha256
            )
        finally:
            discard(response)

    def _error_for_status(self, status: int, headers: Mapping[str, str]) -> DataCacheError | None:
        display_name = self._spec.source.display_name
        if status == 401:
            hint = (
                "it refuses the token: put a valid one in"
                if self._token
                else "it requires a token: put it in"
            )
            return Unauthenticated(f"{display_name}: {hint} the Secret (key `accessToken`)")
        if status == 403:
            return PermissionDenied(
                f"{display_name}: its server denies access; "
                "check the token's rights, or that the URL has not expired"
            )
        key = "metalink" if self._document else "url"
        return SourceNotFound(f"{display_name} does not exist; check {key}") if status in (404, 410) else None


def _build_entry(file: UrlFile, facts: _FileFacts) -> Entry:
    identity = json.dumps([file.url, facts.etag, facts.last_modified, facts.size])
    sha256 = file.sha256 or facts.sha256
    digest = f"claimed:{sha256} {identity}" if sha256 else f"token:url {identity}"
    return Entry(
        file.path, EntryKind.FILE, size=facts.size, mtime_ns=_parse_mtime(facts.last_modified), digest=digest
    )


def _parse_identity(entry: Entry) -> list[Any]:
    """Parse URL, ETag, Last-Modified and size from the digest."""
    return list(json.loads(entry.digest.partition(" ")[2]))


def _has_change_token(response: Response) -> bool:
    return bool(response.headers.get("ETag") or response.headers.get("Last-Modified"))


def _parse_size(response: Response) -> int | None:
    """Return the file's size according to the headers, None if they do not have it."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return None
    total = _CONTENT_RANGE_TOTAL.match(response.headers.get("Content-Range", ""))
    if total and response.status in (206, 416):
        return parse_decimal(total[1])
    return parse_decimal(response.headers.get("Content-Length")) if response.status == 200 else None


def _parse_mtime(last_modified: str) -> int:
    """Parse a Last-Modified header into nanoseconds since 1970; the default time if there is none."""
    try:
        return int(email.utils.parsedate_to_datetime(last_modified).timestamp()) * 10**9
    except (TypeError, ValueError):
        return DEFAULT_MTIME_NS


def _is_unchanged(entry: Entry, headers: Mapping[str, str]) -> bool:
    """Compare the ETag, else the modification time.

    True if the listing had neither; False if it had one and the response has neither.
    """
    _, etag, last_modified, _ = _parse_identity(entry)
    if etag and headers.get("ETag"):
        return bool(etag == headers["ETag"])
    if last_modified and headers.get("Last-Modified"):
        return bool(last_modified == headers["Last-Modified"])
    return not (etag or last_modified)
