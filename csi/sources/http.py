"""Ranged reads over HTTP: byte ranges of files straight into the caller's buffers, over reused connections.

What a file's address is, what is sent along, and what tells that the file is still the one that was listed, is the
caller's: see `Addresses`. This module follows redirects, keeps credentials from other hosts, remembers signed addresses until
they fail, and checks that what comes is what was asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urljoin

import urllib3

from csi.errors import DataCacheError, OriginThrottled, OriginUnavailable, PermissionDenied, RangesIgnored, SourceChanged
from csi.sources.allowance import Allowances
from csi.sources.answers import changed, check_whole, failure, range_end
from csi.sources.connections import Connections, Site, drop, shown_site, site
from csi.sources.small_answers import LARGEST, SmallAnswer
from csi.sources.streams import SharedStreams, Stream
from csi.spec.manifest import Entry

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# A signed address that ended: S3 and CDNs say 403, S3 says 400 of a session's token, some hubs 401, some 410.
_ENDED = (400, 401, 403, 410, *_REDIRECTS)
_REMEMBERED = 1024
_SKIP = 1 << 18
# Some mirrors send small files whole whatever is asked for: what is read in vain then is less than what reading in order would cost.
_SMALL = 4 << 20

Refusal = Callable[[int, Mapping[str, str]], DataCacheError | None]
Headers = Callable[[Entry], Mapping[str, str]]
Judge = Callable[[Entry, Mapping[str, str]], bool]
Answer = urllib3.BaseHTTPResponse | SmallAnswer


class Address(NamedTuple):
    """Where a file's bytes came from; `home` is the site of its first address, the one that credentials go to."""

    url: str
    home: Site

    @property
    def at_home(self) -> bool:
        """Whether this is on that site."""
        return site(self.url) == self.home


@dataclass
class Addresses:
    """Where files are: `url_of` gives the first address, `headers` (a credential among them) go to that address's site only.

    `refusal` may turn an error status of that site, and its headers, into an error in the source's own words. With
    `signs`, `url_of` signs addresses that end: each is used until it is refused, then it is asked for a new one, once.
    `conditions` are headers of one file (If-Match) that go along to every host; an answer 412 is SourceChanged. `unchanged` is asked
    with the headers of every answer that has bytes; False is SourceChanged, in the middle of a file too.
    What was signed, where redirects led to and what each site allows is shared by all readers of one source. `in_order` is set
    once the origin sent a large file whole where a part was asked for: then one stream is read on from reader to reader.
    """

    url_of: Callable[[Entry], str]
    headers: Mapping[str, str] = field(default_factory=dict)
    refusal: Refusal = lambda status, headers: None
    signs: bool = False
    conditions: Headers = lambda entry: {}
    unchanged: Judge = lambda entry, headers: True
    allowances: Allowances = field(default_factory=Allowances, init=False, repr=False)
    in_order: bool = field(default=False, init=False)
    streams: SharedStreams = field(default_factory=SharedStreams, init=False, repr=False)
    _known: dict[str, Address] = field(default_factory=dict, init=False, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def known(self, entry: Entry) -> Address | None:
        """What `remember` was told last, of the last files that were read."""
        return self._known.get(entry.path)

    def remember(self, entry: Entry, address: Address) -> None:
        """The file's bytes came from `address`: the next range may ask there."""
        with self._guard:
            self._known.pop(entry.path, None)
            self._known[entry.path] = address
            # Files are read one after the other: what is behind would only take memory, in a source of many files.
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]

    def forget(self, entry: Entry, address: Address) -> None:
        """`address` is refused now; a newer one that another reader found stays."""
        with self._guard:
            if self._known.get(entry.path) == address:
                del self._known[entry.path]


class RangeReader:
    """Reads ranges of files; for one thread at a time, as a context. Implements `csi.spec.access.Reader`."""

    def __init__(self, connections: Connections, addresses: Addresses) -> None:
        self._connections, self._addresses = connections, addresses
        self._stream: Stream | None = None
        self._ignored = False

    def __enter__(self) -> RangeReader:
        self._addresses.streams.joined()
        return self

    def __exit__(self, *_: object) -> None:
        # Not before: who heard of it from this reader reads in order by now.
        self._addresses.in_order |= self._ignored
        self._pass_on()
        self._close_stream()
        self._addresses.streams.left()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` with the bytes of `entry` from byte `offset` on; see `Reader.read_into`.

        A read beyond the end of the file is SourceChanged without a request. OriginThrottled has the origin's Retry-After.
        RangesIgnored is raised once, where a large file came whole: from then on reads should be in order.
        """
        if offset + len(buffer) > entry.size:
            raise SourceChanged(f"{entry.path!r} has {entry.size} bytes; {len(buffer)} from byte {offset} on were asked for")
        done = 0
        while done < len(buffer):
            stream = self._stream_at(entry, offset + done, offset + len(buffer))
            done += self._read(stream, buffer[done:])
        self._pass_on()

    def ask(self, entry: Entry, headers: Mapping[str, str], wanted: int = 0) -> tuple[Answer, Address]:
        """The last answer to a GET of `entry`, redirects followed, whatever its status, and where it is from; the caller reads or drops its body.

        Of the body come at most `wanted` bytes and one more, or all where that is 0.
        """
        return self._follow(entry, headers, wanted)

    def _stream_at(self, entry: Entry, offset: int, end: int) -> Stream:
        """An open answer whose next byte is `offset` of `entry`: the one at hand where it goes on, else a new request."""
        if self._stream is not None and self._stream.position != offset:
            # Another reader may have left one that is further.
            self._pass_on()
        stream = self._stream
        if stream is None or not stream.reaches(entry, offset):
            self._close_stream()
            self._stream = stream = self._addresses.streams.take(entry, offset) or self._request(entry, offset, end)
        if stream.position < offset:
            self._skip(stream, offset)
        return stream

    def _skip(self, stream: Stream, offset: int) -> None:
        if stream.whole and not self._is_in_order(stream.entry):
            self._ignored = True
            raise RangesIgnored(f"the origin sends all of {stream.entry.path!r} where a part was asked for; its files are read in order from now on")
        scratch = memoryview(bytearray(_SKIP))
        while stream.position < offset:
            self._read(stream, scratch[: offset - stream.position])

    def _is_in_order(self, entry: Entry) -> bool:
        return entry.size <= _SMALL or self._addresses.in_order or self._ignored

    def _read(self, stream: Stream, buffer: memoryview) -> int:
        try:
            count = stream.read(buffer)
            if stream.position == stream.end:
                self._stream = None
                stream.finish()
        except DataCacheError:
            self._close_stream()
            raise
        return count

    def _pass_on(self) -> None:
        if self._stream is not None and self._stream.whole and self._addresses.in_order:
            self._addresses.streams.put(self._stream)
            self._stream = None

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _request(self, entry: Entry, offset: int, end: int) -> Stream:
        """A new answer for bytes `offset` to `end` of `entry`, checked; through the remembered address, if it still works."""
        asked = {**self._addresses.conditions(entry), "Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity"}
        known = self._addresses.known(entry)
        wanted = entry.size if end - offset == entry.size <= LARGEST else 0
        if known is not None:
            with self._forgotten_when_dead(entry, known):
                response = self._get(known, asked, entry, wanted)
                if response.status not in _ENDED:
                    return self._checked(response, known, entry, offset, end)
            drop(response)
            self._addresses.forget(entry, known)
        response, address = self._follow(entry, asked, wanted)
        return self._checked(response, address, entry, offset, end)

    @contextmanager
    def _forgotten_when_dead(self, entry: Entry, address: Address) -> Iterator[None]:
        """Where a remembered address gives no answer, or a bad one, the next try asks the first address, which may lead elsewhere by then."""
        try:
            yield
        except OriginUnavailable as error:
            if not isinstance(error, OriginThrottled):
                self._addresses.forget(entry, address)
            raise

    def _get(self, address: Address, asked: Mapping[str, str], entry: Entry, wanted: int) -> Answer:
        """`wanted` is how many bytes of body there should be where they are few, else 0."""
        allowed = self._addresses.allowances
        allowed.check(address.url)
        headers = {**self._addresses.headers, **asked} if address.at_home else asked
        try:
            response: Answer | None = self._connections.get_small(address.url, headers, address.home, wanted) if wanted else None
            response = response or self._connections.get(address.url, headers, address.home)
        except OriginUnavailable as error:
            raise type(error)(f"{error} (asked for {entry.path!r})") from error
        allowed.note(address.url, response.headers)
        return response

    def _follow(self, entry: Entry, asked: Mapping[str, str], wanted: int) -> tuple[Answer, Address]:
        """Ask the first address and go where it sends; returns the last answer and where it is from."""
        url = self._addresses.url_of(entry)
        address = Address(url, site(url))
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(address, asked, entry, wanted)
            if response.status not in _REDIRECTS:
                if response.status in (200, 206) and (self._addresses.signs or not address.at_home):
                    self._addresses.remember(entry, address)
                return response, address
            address = address._replace(url=_next_address(response, address.url))
        raise OriginUnavailable(f"{shown_site(address.url)}: more than {MAX_REDIRECTS} redirects for {entry.path!r}")

    def _checked(self, response: Answer, address: Address, entry: Entry, offset: int, end: int) -> Stream:
        try:
            if response.status not in (200, 206):
                refusal = self._addresses.refusal(response.status, response.headers) if address.at_home else None
                raise refusal or failure(response.status, response.headers, address.url, entry)
            if not self._addresses.unchanged(entry, response.headers):
                raise changed(entry, address.url)
            if response.status == 206:
                end = range_end(response.headers, address.url, entry, offset, end)
                return Stream(response, address.url, entry, offset, end, self._connections.tempo)
            check_whole(response.headers, address.url, entry)
            return Stream(response, address.url, entry, 0, entry.size, self._connections.tempo, whole=True)
        except DataCacheError:
            drop(response)
            raise


def _next_address(response: Answer, url: str) -> str:
    location = response.headers.get("Location", "")
    drop(response)
    try:
        target = urljoin(url, location)
        scheme = site(target)[0]
    except (ValueError, OriginUnavailable) as error:
        raise OriginUnavailable(f"{shown_site(url)}: it redirects to an address that is no http or https URL") from error
    if not location:
        raise OriginUnavailable(f"{shown_site(url)}: it redirects to nowhere")
    if site(url)[0] == "https" and scheme != "https":
        raise PermissionDenied(f"{shown_site(url)} redirects from https to {scheme} ({shown_site(target)}), where anybody could change what comes")
    return target
