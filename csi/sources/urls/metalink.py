"""Metalink 4 documents: lists of files with their URLs, sizes and hashes.

RFC 5854: `metalink` has `file` elements with a `name` (4.1.2.1: a path below the download folder) and, among
others, `size`, `hash` (hexadecimal; `type` from IANA's registry of hash functions) and `url` (`priority` from
1, the best, to 999999, the default). A document is only its author's statement, and the author may be
anybody: it is parsed as a stream, with a limit on everything that it can make grow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin
from xml.parsers import expat

from csi.errors import (
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    OutOfRange,
    PermissionDenied,
    UnsafeContent,
)
from csi.manifest.manifest import Entry, EntryKind, check_path
from csi.parameters.dialects.endpoints import parse_http_url
from csi.parameters.dialects.urls import UrlSpec
from csi.sources.http.connections import Connections, discard
from csi.sources.http.file_urls import FileUrls, Response, StatusErrorMapper
from csi.sources.http.range_reader import RangeReader
from csi.sources.http.sites import Site, format_site, parse_site
from csi.sources.plain_xml import XmlHandler, create_parser
from csi.sources.urls.full_read import iter_body
from csi.values import parse_decimal, redact

MAX_METALINK_FILES = 100_000
# Each site costs an access check for every new volume.
MAX_METALINK_SITES = 16
MAX_METALINK_BYTES = 64 << 20
# Limits on what a hostile document can make the parser keep in memory.
_MAX_DEPTH = 16
_MAX_NAMES = 1000
_MAX_TAG_BYTES = 1 << 20
_MAX_TEXT_LENGTH = 1 << 13
_XML_NAMESPACE = "urn:ietf:params:xml:ns:metalink"
_ROOT_ELEMENT = f"{_XML_NAMESPACE} metalink"
_FILE_ELEMENT_STACK = [_ROOT_ELEMENT, f"{_XML_NAMESPACE} file"]
_SIZE_ELEMENT, _HASH_ELEMENT, _URL_ELEMENT = (f"{_XML_NAMESPACE} {name}" for name in ("size", "hash", "url"))
# RFC 5854: 1 to 999999, the default.
_LOWEST_PRIORITY = 999_999
_PRIORITY = re.compile(r"[1-9][0-9]{0,5}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTITY_HEADERS = {"Accept-Encoding": "identity"}


class MetalinkFile(NamedTuple):
    """A file listed by a document: `size` is None and `sha256` (64 hex digits) "" if not given."""

    path: str
    url: str
    size: int | None
    sha256: str


class MetalinkDocument:
    """The document named by `spec`, read over `connections`.

    `headers` (including a credential) go to its site only. `error_for_status` is as in `FileUrls`, `wait` as
    in `iter_body`.
    """

    def __init__(
        self,
        spec: UrlSpec,
        connections: Connections,
        headers: Mapping[str, str],
        error_for_status: StatusErrorMapper,
        wait: Callable[[int], None],
    ) -> None:
        self._url = spec.metalink
        self._display_name = spec.display_name
        self._connections = connections
        self._wait = wait
        self._file_urls = FileUrls(lambda entry: spec.metalink, headers, error_for_status)
        self._is_read = False

    def iter_files(self) -> Iterator[MetalinkFile]:
        """Yield its files, in order, as the document arrives; raises as `parse_files` and as a Source."""
        response, url = self._request(_IDENTITY_HEADERS)
        try:
            body = iter_body(
                response,
                url,
                self._wait,
                self._connections.baseline,
                " (while reading the Metalink document)",
            )
            yield from parse_files(body, self._url, self._display_name)
            self._is_read = True
        finally:
            discard(response)

    def check_read_access(self) -> None:
        """Raise unless this credential can read the document.

        Sends no request if `iter_files` has just read it all.
        """
        if not self._is_read:
            discard(self._request({"Range": "bytes=0-0", **_IDENTITY_HEADERS})[0])

    def _request(self, headers: Mapping[str, str]) -> tuple[Response, str]:
        entry = Entry("the Metalink document", EntryKind.FILE)
        with RangeReader(self._connections, self._file_urls) as reader:
            response, file_url = reader.get_response(entry, headers)
        if response.status in (200, 206):
            return response, file_url.url
        discard(response)
        raise self._file_urls.response_error(response, file_url, entry)


def pick_smallest_per_site(files: Iterable[tuple[str, Entry]]) -> list[Entry]:
    """Return the smallest non-empty entry of each site."""
    smallest: dict[Site, Entry] = {}
    for url, entry in files:
        file_site = parse_site(url)
        if entry.size and (file_site not in smallest or entry.size < smallest[file_site].size):
            smallest[file_site] = entry
    return list(smallest.values())


def parse_files(
    body: Iterable[bytes | memoryview], document_url: str, display_name: str
) -> Iterator[MetalinkFile]:
    """Parse the document at `document_url`, yielding its files; `display_name` names it in messages.

    Raises FailedPrecondition if it is not a Metalink document or names a file in an unusable way,
    UnsafeContent for an impossible path, PermissionDenied for http URLs in a document that came by https,
    OutOfRange for more than 100,000 files, 16 sites or 64 MiB. Messages name the line and the file.
    """
    handler, count = _MetalinkHandler(document_url, display_name), 0
    for piece in body:
        count += len(piece)
        if count > MAX_METALINK_BYTES:
            raise OutOfRange(
                f"{display_name} has more than {MAX_METALINK_BYTES >> 20} MiB; "
                "split it into several documents, and name them in sources"
            )
        handler.feed(piece, count)
        yield from handler.take()
    handler.feed(b"", count, last=True)
    yield from handler.take()
    if not handler.file_count:
        raise FailedPrecondition(f"{display_name} names no file; check metalink")


@dataclass
class _FileElement:
    """What is known so far of the file whose element began at `line`; `url` is the best one of its URLs."""

    path: str
    line: int
    size: int | None = None
    sha256: str = ""
    url: str = ""
    priority: int = _LOWEST_PRIORITY + 1
    has_http: bool = False


class _MetalinkHandler(XmlHandler):
    """State of the parser."""

    def __init__(self, document_url: str, display_name: str) -> None:
        self.file_count = 0
        self._document_url, self._display_name = document_url, display_name
        # As with redirects, https must not lead to http: more people on the way could change the data.
        self._schemes = ("https",) if parse_site(document_url)[0] == "https" else ("http", "https")
        # Names of the elements that are open, outermost first.
        self._open_elements: list[str] = []
        self._names: set[str] = set()
        self._characters: list[str] | None = None
        self._text_length = 0
        self._attributes: dict[str, str] = {}
        self._file: _FileElement | None = None
        self._seen_file_paths: set[str] = set()
        self._sites: set[Site] = set()
        self._finished: list[MetalinkFile] = []
        self._parser = create_parser(self, namespaces=True)
        self._parser.StartNamespaceDeclHandler = self.on_namespace

    def feed(self, piece: bytes | memoryview, total: int, last: bool = False) -> None:
        """Parse the next bytes; `total` counts all bytes so far."""
        try:
            self._parser.Parse(piece, last)
        except expat.ExpatError as error:
            raise self._document_error("invalid XML or UTF-8 from here on, or cut short") from error
        except ValueError as error:
            raise self._document_error(
                "it has a document type declaration, which is not allowed; remove it"
            ) from error
        # The parser buffers a tag until it is complete.
        if total - self._parser.CurrentByteIndex > _MAX_TAG_BYTES:
            raise self._document_error(f"a tag or comment has over {_MAX_TAG_BYTES >> 20} MiB")

    def take(self) -> list[MetalinkFile]:
        """Return the files completed since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _document_error(
        self, message: str, error_type: type[DataCacheError] = FailedPrecondition
    ) -> DataCacheError:
        """Create an error that says where in the document the problem is."""
        line = self._file.line if self._file else self._parser.CurrentLineNumber
        file = f", file {self._file.path[:200]!r}" if self._file else ""
        return error_type(f"{self._display_name}, line {line}{file}: {message}")

    def on_namespace(self, prefix: str | None, _: str | None) -> None:
        self._count_names([f"xmlns:{prefix}"])

    def on_start_element(self, name: str, attributes: dict[str, str]) -> None:
        self._open_elements.append(name)
        self._count_names((name, *attributes))
        if self._open_elements[0] != _ROOT_ELEMENT:
            raise self._document_error(
                f'it does not begin with <metalink xmlns="{_XML_NAMESPACE}">, '
                "so it is not a Metalink 4 document (RFC 5854); check metalink"
            )
        if len(self._open_elements) > _MAX_DEPTH:
            raise self._document_error(
                f"elements are nested more than {_MAX_DEPTH} deep, unlike in any Metalink document"
            )
        if self._open_elements == _FILE_ELEMENT_STACK:
            self._file = self._begin_file(attributes.get("name", ""))
        elif (
            len(self._open_elements) == len(_FILE_ELEMENT_STACK) + 1
            and self._file
            and name in (_SIZE_ELEMENT, _HASH_ELEMENT, _URL_ELEMENT)
        ):
            self._characters, self._text_length, self._attributes = [], 0, attributes

    def on_text(self, text: str) -> None:
        if self._characters is not None:
            self._characters.append(text)
            self._text_length += len(text)
            if self._text_length > _MAX_TEXT_LENGTH:
                raise self._document_error(f"a size, hash or url has over {_MAX_TEXT_LENGTH} characters")

    def on_end_element(self, name: str) -> None:
        if self._open_elements == _FILE_ELEMENT_STACK and self._file:
            self._finish_file(self._file)
        elif (
            self._characters is not None
            and self._file
            and len(self._open_elements) == len(_FILE_ELEMENT_STACK) + 1
        ):
            text, self._characters = "".join(self._characters).strip(), None
            {_SIZE_ELEMENT: self._set_size, _HASH_ELEMENT: self._set_hash, _URL_ELEMENT: self._set_url}[name](
                self._file, text
            )
        self._open_elements.pop()

    def _count_names(self, names: Iterable[str]) -> None:
        # The parser interns every name that it sees.
        self._names.update(names)
        if len(self._names) > _MAX_NAMES:
            raise self._document_error(
                f"there are over {_MAX_NAMES} names of elements and attributes, "
                "unlike in any Metalink document"
            )

    def _begin_file(self, path: str) -> _FileElement:
        file = _FileElement(path, self._parser.CurrentLineNumber)
        try:
            check_path(path)
        except UnsafeContent as error:
            raise self._document_error(f"{error}; change its name", UnsafeContent) from error
        if path in self._seen_file_paths:
            self._file = file
            raise self._document_error("an earlier file has the same name; give each its own")
        if len(self._seen_file_paths) == MAX_METALINK_FILES:
            raise self._document_error(
                f"there are more than {MAX_METALINK_FILES} files; "
                "split it into several documents, and name them in sources",
                OutOfRange,
            )
        self._seen_file_paths.add(path)
        return file

    def _set_size(self, file: _FileElement, text: str) -> None:
        size = parse_decimal(text)
        if size is None:
            raise self._document_error(f"its size is {redact(text)}; it is the number of its bytes")
        if file.size not in (None, size):
            raise self._document_error("it has two sizes; keep the right one")
        file.size = size

    def _set_hash(self, file: _FileElement, text: str) -> None:
        if self._attributes.get("type", "").lower() != "sha-256":
            return
        if not _SHA256.fullmatch(text.lower()):
            raise self._document_error(f"its sha-256 is {redact(text, 70)}; it is 64 hex digits")
        if file.sha256 not in ("", text.lower()):
            raise self._document_error("it has two sha-256 hashes; keep the right one")
        file.sha256 = text.lower()

    def _set_url(self, file: _FileElement, text: str) -> None:
        priority = self._attributes.get("priority", str(_LOWEST_PRIORITY))
        if not _PRIORITY.fullmatch(priority):
            raise self._document_error(
                f"a url's priority is {redact(priority)}; it is 1 (the best) to {_LOWEST_PRIORITY}"
            )
        url = self._join_url(text)
        scheme = url.partition(":")[0].lower()
        file.has_http |= scheme == "http"
        if scheme in self._schemes and int(priority) < file.priority:
            file.url, file.priority = url, int(priority)

    def _join_url(self, text: str) -> str:
        """Resolve a URL against the document's own, before redirects, whose target may be signed."""
        if not text or text.startswith("#") or not text.isprintable() or " " in text:
            raise self._document_error(
                "one of its URLs is empty, or has a blank or a control character; write http(s)://host/path"
            )
        if text.startswith(("https://", "http://")):
            return text
        try:
            return urljoin(self._document_url, text)
        except ValueError as error:
            raise self._document_error(
                f"its url {redact(text, 100)} cannot be read; write http(s)://host/path"
            ) from error

    def _finish_file(self, file: _FileElement) -> None:
        if not file.url:
            raise self._missing_url_error(file)
        try:
            url = parse_http_url("url", file.url)._replace(fragment="").geturl()
        except InvalidParameter as error:
            raise self._document_error(
                f"its url, on {_host(file.url)!r}, is not a plain http(s) URL; "
                "give one without login, signature and blanks, since the volume keeps it"
            ) from error
        self._sites.add(parse_site(url))
        if len(self._sites) > MAX_METALINK_SITES:
            raise self._document_error(
                f"{format_site(url)} is one more host (with its scheme and port) "
                f"than the {MAX_METALINK_SITES} that a volume may have",
                OutOfRange,
            )
        self._finished.append(MetalinkFile(file.path, url, file.size, file.sha256))
        self._file = None
        self.file_count += 1

    def _missing_url_error(self, file: _FileElement) -> DataCacheError:
        if file.has_http:
            return self._document_error(
                "its URLs are http, and the document came by https: "
                "anybody on the way could change the data; give it an https URL",
                PermissionDenied,
            )
        return self._document_error("it has no http or https url; add one")


def _host(url: str) -> str:
    """Return the host of a document's URL for messages, as the rest may be a secret.

    "" if it cannot be parsed.
    """
    try:
        return format_site(url)[:100]
    except ValueError:
        return ""
