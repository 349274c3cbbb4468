"""Ranged reads over HTTP: byte ranges of files straight into the caller's buffers, over reused connections.

What a file's address is, and what is sent along, is the caller's: see `Addresses`. This module follows redirects, keeps
credentials from other hosts, remembers signed addresses until they fail, and checks that what comes is what was asked.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urljoin

import urllib3

from csi.errors import DataCacheError, OriginThrottled, OriginUnavailable, PermissionDenied, SourceChanged, SourceNotFound, Unauthenticated
from csi.sources.connections import Connections, drop, in_words, shown_site, site
from csi.spec.manifest import Entry

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# A signed address that ended: S3 and CDNs say 403, some hubs 401, some 410.
_ENDED = (401, 403, 410)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")
_SKIP = 1 << 18

Refusal = Callable[[int, Mapping[str, str]], DataCacheError | None]


class _Body(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...


@dataclass
class Addresses:
    """Where files are: `url_of` gives the first address, `headers` (a credential among them) go to that address's site only.

    `refusal` may turn an error status and its headers into an error in the source's own words. Addresses that
    redirects led to are shared by all readers of one source.
    """

    url_of: Callable[[Entry], str]
    headers: Mapping[str, str] = field(default_factory=dict)
    refusal: Refusal = lambda status, headers: None
    signed: dict[str, str] = field(default_factory=dict)


class RangeReader:
    """Reads ranges of files; for one thread at a time. Implements `csi.spec.access.Reader`."""

    def __init__(self, connections: Connections, addresses: Addresses) -> None:
        self._connections, self._addresses = connections, addresses
        self._stream: _Stream | None = None

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_stream()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` with the bytes of `entry` from byte `offset` on; see `Reader.read_into`.

        A read beyond the end of the file is SourceChanged without a request. OriginThrottled has the origin's Retry-After.
        """
        if offset + len(buffer) > entry.size:
            raise SourceChanged(f"{entry.path!r} has {entry.size} bytes; {len(buffer)} from byte {offset} on were asked for")
        done = 0
        while done < len(buffer):
            stream = self._stream_at(entry, offset + done, offset + len(buffer))
            done += self._read(stream, buffer[done:])

    def _stream_at(self, entry: Entry, offset: int, end: int) -> _Stream:
        """An open answer whose next byte is `offset` of `entry`: the one at hand where it goes on, else a new request."""
        stream = self._stream
        if stream is None or not stream.reaches(entry, offset):
            self._close_stream()
            self._stream = stream = self._request(entry, offset, end)
        if stream.position < offset:
            self._skip(stream, offset)
        return stream

    def _skip(self, stream: _Stream, offset: int) -> None:
        scratch = memoryview(bytearray(_SKIP))
        while stream.position < offset:
            self._read(stream, scratch[: offset - stream.position])

    def _read(self, stream: _Stream, buffer: memoryview) -> int:
        try:
            count = stream.read(buffer)
        except OriginUnavailable:
            self._close_stream()
            raise
        if stream.position == stream.end:
            stream.finish()
            self._stream = None
        return count

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.response.close()
            self._stream = None

    def _request(self, entry: Entry, offset: int, end: int) -> _Stream:
        """A new answer for bytes `offset` to `end` of `entry`, checked; through the remembered address, if it still works."""
        ranged = {"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity"}
        known = self._addresses.signed.get(entry.path)
        if known is not None:
            response = self._connections.get(known, ranged)
            if response.status not in _ENDED:
                return self._checked(response, known, entry, offset, end)
            drop(response)
            self._addresses.signed.pop(entry.path, None)
        response, url = self._follow(entry, ranged)
        return self._checked(response, url, entry, offset, end)

    def _follow(self, entry: Entry, ranged: Mapping[str, str]) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Ask the first address and go where it sends; returns the last answer and its address."""
        url = self._addresses.url_of(entry)
        home = site(url)
        for _ in range(MAX_REDIRECTS + 1):
            at_home = site(url) == home
            response = self._connections.get(url, {**self._addresses.headers, **ranged} if at_home else ranged)
            if response.status not in _REDIRECTS:
                if not at_home and response.status in (200, 206):
                    self._addresses.signed[entry.path] = url
                return response, url
            url = _next_address(response, url)
        raise OriginUnavailable(f"{shown_site(url)}: more than {MAX_REDIRECTS} redirects for {entry.path!r}")

    def _checked(self, response: urllib3.BaseHTTPResponse, url: str, entry: Entry, offset: int, end: int) -> _Stream:
        try:
            if response.status == 206:
                return _Stream(response, url, entry, offset, _range_end(response, url, entry, offset, end))
            if response.status == 200:
                _check_whole(response, url, entry)
                return _Stream(response, url, entry, 0, entry.size)
            at_home = site(url) == site(self._addresses.url_of(entry))
            refusal = self._addresses.refusal(response.status, response.headers) if at_home else None
            raise refusal or failure(response.status, response.headers, url, entry)
        except DataCacheError:
            drop(response)
            raise


class _Stream:
    """An open answer: `response` holds bytes `position` to `end` of `entry`."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, entry: Entry, position: int, end: int) -> None:
        self.response, self.entry, self.position, self.end = response, entry, position, end
        self._site = shown_site(url)
        # urllib3's own readinto copies; the http.client body below it writes into the buffer itself (a fifth less CPU).
        body = getattr(response, "_fp", None)
        self._body: _Body = body if isinstance(body, http.client.HTTPResponse) else response

    def reaches(self, entry: Entry, offset: int) -> bool:
        return entry == self.entry and self.position <= offset < self.end

    def read(self, buffer: memoryview) -> int:
        """At least one byte into `buffer`; raises OriginUnavailable when the answer ends early or nothing comes."""
        try:
            count = self._body.readinto(buffer[: self.end - self.position])
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
            raise OriginUnavailable(f"{self._site}: {in_words(error)} (in {self.entry.path!r} at byte {self.position})") from error
        if not count:
            raise OriginUnavailable(f"{self._site}: the connection ended early (in {self.entry.path!r} at byte {self.position})")
        self.position += count
        return count

    def finish(self) -> None:
        """All bytes that count were read: the connection is free for the next request, unless more than that was sent."""
        try:
            # Lets http.client see the end of a chunked body.
            more = self._body.readinto(memoryview(bytearray(1)))
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError):
            more = 1
        if more:
            self.response.close()
        else:
            self.response.release_conn()


def failure(status: int, headers: Mapping[str, str], url: str, entry: Entry) -> DataCacheError:
    """An error status in the words of `csi.errors`."""
    where = f"{shown_site(url)} answered {status} for {entry.path!r}"
    if status == 401:
        return Unauthenticated(f"{where}: it wants a credential, or refuses the one it was given")
    if status == 403:
        return PermissionDenied(f"{where}: this credential may not read it")
    if status in (404, 410):
        return SourceNotFound(f"{where}: it is not there any more")
    if status == 416:
        return SourceChanged(f"{where}: the file is shorter than it was when it was listed ({entry.size} bytes)")
    return passing_fault(status, headers, where)


def passing_fault(status: int, headers: Mapping[str, str], where: str) -> OriginUnavailable:
    """OriginThrottled for 429 and 503, OriginUnavailable for the rest; `where` begins the message."""
    if status in (429, 503):
        wait = retry_after(headers)
        return OriginThrottled(f"{where}: it asks for patience" + (f" ({wait:.0f} s)" if wait else ""), wait)
    return OriginUnavailable(f"{where}: an answer that cannot be used; trying again may help")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: seconds or a date), 0 where there is none or it cannot be read."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _next_address(response: urllib3.BaseHTTPResponse, url: str) -> str:
    location = response.headers.get("Location", "")
    drop(response)
    try:
        target = urljoin(url, location)
        site(target)
    except (ValueError, OriginUnavailable) as error:
        raise OriginUnavailable(f"{shown_site(url)}: it redirects to an address that is no http or https URL") from error
    if not location:
        raise OriginUnavailable(f"{shown_site(url)}: it redirects to nowhere")
    return target


def _range_end(response: urllib3.BaseHTTPResponse, url: str, entry: Entry, offset: int, end: int) -> int:
    """The end of the range that came; fewer bytes than asked for are fine, another place or another file is not."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    _check_encoding(response, url, entry)
    if match is None or int(match[1]) != offset or not offset < int(match[2]) + 1 <= end:
        raise OriginUnavailable(f"{shown_site(url)}: it sent another range of {entry.path!r} than was asked for (bytes {offset} to {end - 1})")
    if match[3] not in ("*", str(entry.size)):
        raise SourceChanged(f"{entry.path!r} has {match[3]} bytes now, it had {entry.size} when it was listed")
    return int(match[2]) + 1


def _check_whole(response: urllib3.BaseHTTPResponse, url: str, entry: Entry) -> None:
    _check_encoding(response, url, entry)
    length = response.headers.get("Content-Length", "")
    if length and length != str(entry.size):
        raise SourceChanged(f"{entry.path!r} has {length} bytes now, it had {entry.size} when it was listed")


def _check_encoding(response: urllib3.BaseHTTPResponse, url: str, entry: Entry) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OriginUnavailable(f"{shown_site(url)}: it sends {entry.path!r} compressed, which was not asked for; check the proxies on the way")
