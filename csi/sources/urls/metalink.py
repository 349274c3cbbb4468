"""A Metalink 4 document: which files there are, where each is, and what its bytes must be.

RFC 5854: `metalink` holds `file` elements with a `name` (4.1.2.1: a path below where the files go) and, among others, `size`, `hash` (its
`type` a name of IANA's registry of hash functions, in hexadecimal) and `url` (its `priority` 1 for the best, 999999 where none is said).
What a document says is its author's word, and it may be anybody's: it is read as it comes, and bounded in all it can make grow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin
from xml.parsers import expat

from csi.errors import DataCacheError, FailedPrecondition, InvalidParameter, OutOfRange, PermissionDenied, UnsafeContent
from csi.manifest.manifest import Entry, Kind, check_path
from csi.parameters.dialects.endpoints import http_url
from csi.parameters.dialects.urls import UrlSpec
from csi.sources.http.connections import Connections, Site, drop, shown_site, site
from csi.sources.http.file_urls import Addresses, Answer, Refusal
from csi.sources.http.range_reader import RangeReader
from csi.sources.plain_xml import plain_parser
from csi.sources.urls.full_read import pieces
from csi.values import shown, whole_number

MOST_FILES = 100_000
MOST_SITES = 16
LARGEST = 64 << 20
_DEEPEST = 16
_MOST_NAMES = 1000
_LONGEST_TAG = 1 << 20
_LONGEST_TEXT = 1 << 13
_SPACE = "urn:ietf:params:xml:ns:metalink"
_ROOT = f"{_SPACE} metalink"
_FILE = [_ROOT, f"{_SPACE} file"]
_SIZE, _HASH, _URL = (f"{_SPACE} {name}" for name in ("size", "hash", "url"))
_WORST_PRIORITY = 999_999
_PRIORITY = re.compile(r"[1-9][0-9]{0,5}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ALL = {"Accept-Encoding": "identity"}


class Listed(NamedTuple):
    """A file as a document lists it: `size` is None and `sha256` (64 hex digits) "" where it does not say."""

    path: str
    url: str
    size: int | None
    sha256: str


class Document:
    """The document that `spec` names, read over `connections` with `headers` (a credential among them) as those of its site.

    `refusal` is as that of `Addresses`; `wait` returns when so many bytes more may be read.
    """

    def __init__(self, spec: UrlSpec, connections: Connections, headers: Mapping[str, str], refusal: Refusal, wait: Callable[[int], None]) -> None:
        self._url, self._shown, self._connections, self._wait = spec.metalink, spec.shown, connections, wait
        self._addresses = Addresses(lambda entry: spec.metalink, headers, refusal)
        self._was_read = False

    def files(self) -> Iterator[Listed]:
        """Its files, in its order, while it comes. Raises what `read_files` does, and the errors of a Source."""
        answer, address = self._ask(_ALL)
        try:
            body = pieces(answer, address, self._wait, self._connections.tempo, " (while reading the Metalink document)")
            yield from read_files(body, self._url, self._shown)
            self._was_read = True
        finally:
            drop(answer)

    def prove(self) -> None:
        """Return if this credential may read the document; `files` has told, once it was read to its end."""
        if not self._was_read:
            drop(self._ask({"Range": "bytes=0-0", **_ALL})[0])

    def _ask(self, headers: Mapping[str, str]) -> tuple[Answer, str]:
        asked = Entry("the Metalink document", Kind.FILE)
        with RangeReader(self._connections, self._addresses) as reader:
            answer, address = reader.ask(asked, headers)
        if answer.status in (200, 206):
            return answer, address.url
        drop(answer)
        raise self._addresses.refused(answer, address, asked)


def smallest_of_each_site(files: Iterable[tuple[str, Entry]]) -> list[Entry]:
    """Of entries behind their URLs, the smallest of each site that is not empty."""
    found: dict[Site, Entry] = {}
    for url, entry in files:
        there = site(url)
        if entry.size and (there not in found or entry.size < found[there].size):
            found[there] = entry
    return list(found.values())


def read_files(body: Iterable[bytes | memoryview], address: str, what: str) -> Iterator[Listed]:
    """The files of the document at the URL `address`; `what` names it in messages.

    Raises FailedPrecondition for what is no Metalink document or names a file in a way that cannot be used, UnsafeContent for a path
    that is none in a volume, PermissionDenied for http where the document came by https, OutOfRange for more than 100,000 files, 16
    sites or 64 MiB. Messages name the line and the file.
    """
    reading, count = _Reading(address, what), 0
    for piece in body:
        count += len(piece)
        if count > LARGEST:
            raise OutOfRange(f"{what} has more than {LARGEST >> 20} MiB; make several documents, and name them in sources")
        reading.feed(piece, count)
        yield from reading.take()
    reading.feed(b"", count, last=True)
    yield from reading.take()
    if not reading.count:
        raise FailedPrecondition(f"{what} names no file; check metalink")


@dataclass
class _File:
    """What was said so far of the file whose element began at `line`; `url` is the best one of them."""

    path: str
    line: int
    size: int | None = None
    sha256: str = ""
    url: str = ""
    priority: int = _WORST_PRIORITY + 1
    has_http: bool = False


class _Reading:
    """What the parser has come by."""

    def __init__(self, address: str, what: str) -> None:
        self.count = 0
        self._address, self._what = address, what
        # As with redirects: who may change what comes must not be more people on the way.
        self._schemes = ("https",) if site(address)[0] == "https" else ("http", "https")
        self._where: list[str] = []
        self._names: set[str] = set()
        self._text: list[str] | None = None
        self._length = 0
        self._attributes: dict[str, str] = {}
        self._file: _File | None = None
        self._paths: set[str] = set()
        self._sites: set[Site] = set()
        self._done: list[Listed] = []
        self._parser = plain_parser(self, namespaces=True)
        self._parser.StartNamespaceDeclHandler = self.namespace

    def feed(self, piece: bytes | memoryview, count: int, last: bool = False) -> None:
        """The next bytes, of `count` in all so far."""
        try:
            self._parser.Parse(piece, last)
        except expat.ExpatError as error:
            raise self._bad("from here on there is no XML in UTF-8, or it is cut short") from error
        except ValueError as error:
            raise self._bad("it has a document type of its own, which could hold anything; remove it") from error
        # The parser keeps a tag until it ends.
        if count - self._parser.CurrentByteIndex > _LONGEST_TAG:
            raise self._bad(f"a tag or comment has over {_LONGEST_TAG >> 20} MiB")

    def take(self) -> list[Listed]:
        """The files that ended since the last call."""
        done, self._done = self._done, []
        return done

    def _bad(self, words: str, kind: type[DataCacheError] = FailedPrecondition) -> DataCacheError:
        """An error that says where in the document `words` hold."""
        line = self._file.line if self._file else self._parser.CurrentLineNumber
        file = f", file {self._file.path[:200]!r}" if self._file else ""
        return kind(f"{self._what}, line {line}{file}: {words}")

    def namespace(self, prefix: str | None, _: str | None) -> None:
        self._note([f"xmlns:{prefix}"])

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._where.append(name)
        self._note((name, *attributes))
        if self._where[0] != _ROOT:
            raise self._bad(f'it begins with no <metalink xmlns="{_SPACE}">, so it is no Metalink 4 document (RFC 5854); check metalink')
        if len(self._where) > _DEEPEST:
            raise self._bad(f"there are elements more than {_DEEPEST} deep, which no Metalink document has")
        if self._where == _FILE:
            self._file = self._begun(attributes.get("name", ""))
        elif len(self._where) == len(_FILE) + 1 and self._file and name in (_SIZE, _HASH, _URL):
            self._text, self._length, self._attributes = [], 0, attributes

    def text(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)
            self._length += len(text)
            if self._length > _LONGEST_TEXT:
                raise self._bad(f"a size, hash or url has over {_LONGEST_TEXT} characters")

    def end(self, name: str) -> None:
        if self._where == _FILE and self._file:
            self._end_of_file(self._file)
        elif self._text is not None and self._file and len(self._where) == len(_FILE) + 1:
            text, self._text = "".join(self._text).strip(), None
            {_SIZE: self._take_size, _HASH: self._take_hash, _URL: self._take_url}[name](self._file, text)
        self._where.pop()

    def _note(self, names: Iterable[str]) -> None:
        # The parser keeps every name that it meets.
        self._names.update(names)
        if len(self._names) > _MOST_NAMES:
            raise self._bad(f"there are over {_MOST_NAMES} names of elements and attributes, which no Metalink document has")

    def _begun(self, path: str) -> _File:
        file = _File(path, self._parser.CurrentLineNumber)
        try:
            check_path(path)
        except UnsafeContent as error:
            raise self._bad(f"{error}; change its name", UnsafeContent) from error
        if path in self._paths:
            self._file = file
            raise self._bad("there is a file of this name before; give each its own")
        if len(self._paths) == MOST_FILES:
            raise self._bad(f"there are more than {MOST_FILES} files; make several documents, and name them in sources", OutOfRange)
        self._paths.add(path)
        return file

    def _take_size(self, file: _File, text: str) -> None:
        size = whole_number(text)
        if size is None:
            raise self._bad(f"its size is {shown(text)}; it is the number of its bytes")
        if file.size not in (None, size):
            raise self._bad("it has two sizes; keep the right one")
        file.size = size

    def _take_hash(self, file: _File, text: str) -> None:
        if self._attributes.get("type", "").lower() != "sha-256":
            return
        if not _SHA256.fullmatch(text.lower()):
            raise self._bad(f"its sha-256 is {shown(text, 70)}; it is 64 hex digits")
        if file.sha256 not in ("", text.lower()):
            raise self._bad("it has two sha-256 hashes; keep the right one")
        file.sha256 = text.lower()

    def _take_url(self, file: _File, text: str) -> None:
        priority = self._attributes.get("priority", str(_WORST_PRIORITY))
        if not _PRIORITY.fullmatch(priority):
            raise self._bad(f"a url's priority is {shown(priority)}; it is 1 (the best) to {_WORST_PRIORITY}")
        url = self._absolute(text)
        scheme = url.partition(":")[0].lower()
        file.has_http |= scheme == "http"
        if scheme in self._schemes and int(priority) < file.priority:
            file.url, file.priority = url, int(priority)

    def _absolute(self, text: str) -> str:
        """Relative to where the document is asked for: where that redirects to may be signed."""
        if not text or text.startswith("#") or not text.isprintable() or " " in text:
            raise self._bad("one of its URLs is empty, or has a blank or a control character; write http(s)://host/path")
        if text.startswith(("https://", "http://")):
            return text
        try:
            return urljoin(self._address, text)
        except ValueError as error:
            raise self._bad(f"its url {shown(text, 100)} cannot be read; write http(s)://host/path") from error

    def _end_of_file(self, file: _File) -> None:
        if not file.url:
            raise self._no_url(file)
        try:
            url = http_url("url", file.url)._replace(fragment="").geturl()
        except InvalidParameter as error:
            words = (
                f"its url, on {_host(file.url)!r}, is no plain http(s) URL; give one without login, signature and blanks, since the volume keeps it"
            )
            raise self._bad(words) from error
        self._sites.add(site(url))
        if len(self._sites) > MOST_SITES:
            raise self._bad(f"{shown_site(url)} is one more host (with its scheme and port) than the {MOST_SITES} that a volume may have", OutOfRange)
        self._done.append(Listed(file.path, url, file.size, file.sha256))
        self._file = None
        self.count += 1

    def _no_url(self, file: _File) -> DataCacheError:
        if file.has_http:
            words = "its URLs are http, and the document came by https: anybody on the way could change what comes; give it an https URL"
            return self._bad(words, PermissionDenied)
        return self._bad("it has no http or https url; add one")


def _host(url: str) -> str:
    """The host of whatever a document calls a URL; what else is in it may be a secret."""
    try:
        return shown_site(url)[:100]
    except ValueError:
        return ""
