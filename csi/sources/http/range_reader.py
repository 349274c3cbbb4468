"""Ranged reads over HTTP: byte ranges of files straight into the caller's buffers, over reused connections.

What a file's address is, what is sent along, and what tells that the file is still the one that was listed, is the
caller's: see `Addresses`. This module follows redirects, keeps credentials from other hosts, remembers signed addresses until
they fail, and checks that what comes is what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from csi.errors import DataCacheError, OriginThrottled, OriginUnavailable, RangesIgnored, SourceChanged
from csi.manifest.manifest import Entry
from csi.manifest.reader import Turns, Wanted
from csi.sources.http.batch_fetch import ManyFiles
from csi.sources.http.connections import Connections, drop
from csi.sources.http.curl_fetch import LARGEST
from csi.sources.http.file_urls import ENDED, MAX_REDIRECTS, REDIRECTS, Address, Addresses, Answer, next_address, redirected_too_often
from csi.sources.http.streaming_fetch import Stream

_SKIP = 1 << 18
# Some mirrors send small files whole whatever is asked for: what is read in vain then is less than what reading in order would cost.
_SMALL = 4 << 20


class RangeReader:
    """Reads ranges of files; for one thread at a time, as a context. Implements `csi.manifest.reader.Reader`."""

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

    def read_many(self, wanted: Wanted, turns: Turns) -> dict[Entry, OriginUnavailable]:
        """See `csi.manifest.reader.ManyReader`. What is behind a proxy is left, and of a site with TLS what is asked for before its first answer."""
        return ManyFiles(self._connections, self._addresses, turns).read(wanted)

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
        asked = self._addresses.range_of(entry, offset, end)
        known = self._addresses.known(entry)
        wanted = entry.size if end - offset == entry.size <= LARGEST else 0
        if known is not None:
            with self._forgotten_when_dead(entry, known):
                response = self._get(known, asked, entry, wanted)
                if response.status not in ENDED:
                    return self._checked(response, known, entry, offset, end)
            drop(response)
            self._addresses.forget(entry, known)
        response, address = self._follow(entry, asked, wanted)
        if self._addresses.may_have_ended(address, response.status) and known is None:
            # It may have ended between being given out and being asked.
            drop(response)
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
        headers = self._addresses.asked(address, asked)
        try:
            response: Answer | None = self._connections.get_small(address.url, headers, address.home, wanted) if wanted else None
            response = response or self._connections.get(address.url, headers, address.home)
        except OriginUnavailable as error:
            raise type(error)(f"{error} (asked for {entry.path!r})") from error
        allowed.note(address.url, response.headers)
        return response

    def _follow(self, entry: Entry, asked: Mapping[str, str], wanted: int) -> tuple[Answer, Address]:
        """Ask the first address and go where it sends; returns the last answer and where it is from."""
        address = self._addresses.first(entry)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._get(address, asked, entry, wanted)
            if response.status not in REDIRECTS:
                if response.status in (200, 206) and (self._addresses.signs or not address.at_home):
                    self._addresses.remember(entry, address)
                return response, address
            address = next_address(response, address)
        raise redirected_too_often(address, entry)

    def _checked(self, response: Answer, address: Address, entry: Entry, offset: int, end: int) -> Stream:
        try:
            start, end = self._addresses.span(response, address, entry, offset, end)
            return Stream(response, address.url, entry, start, end, self._connections.tempo, whole=response.status == 200)
        except DataCacheError:
            drop(response)
            raise
