"""Open HTTP responses: bytes read straight into the caller's buffer while their rate is monitored."""

from __future__ import annotations

import http.client
import threading
import time

import urllib3

from csi.errors import OriginUnavailable, SourceChanged
from csi.manifest.manifest import Entry
from csi.sources.http import throughput
from csi.sources.http.connections import unreachable_error
from csi.sources.http.curl_response import CurlResponse
from csi.sources.http.sites import format_site
from csi.sources.http.throughput import ThroughputBaseline, ThroughputMeter

# Bytes of one read from a body without a known length, small enough to notice a slow connection.
_CHUNKED_READ_BYTES = 1 << 16
# How often per window `_receive_sized` returns so that the rate can be checked.
_CHECKS_PER_WINDOW = 8
_CONNECTION_ERRORS = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)


class ResponseStream:
    """An open response with bytes `position` to `end` of `entry`.

    `is_full_response` if the origin sent the whole file although a range was requested.
    """

    def __init__(
        self,
        response: urllib3.BaseHTTPResponse | CurlResponse,
        url: str,
        entry: Entry,
        position: int,
        end: int,
        baseline: ThroughputBaseline,
    ) -> None:
        self.entry, self.position, self.end = entry, position, end
        self.is_full_response = response.status == 200
        self._response, self._site = response, format_site(url)
        # A curl response is complete already; reading it from memory says nothing about the rate of a
        # connection.
        self._meter = ThroughputMeter(
            ThroughputBaseline() if isinstance(response, CurlResponse) else baseline
        )
        # urllib3's own reads copy. The http.client response below them can read into the caller's buffer,
        # which takes a fifth less CPU. `_fp` is not public API; without it, reads go through urllib3.
        body = getattr(response, "_fp", None)
        self._body = body if isinstance(body, http.client.HTTPResponse) else None

    def can_reach(self, entry: Entry, offset: int) -> bool:
        """Return whether byte `offset` of `entry` is still to come in this response."""
        return entry == self.entry and self.position <= offset < self.end

    def read(self, buffer: memoryview) -> int:
        """Read at least one byte into `buffer`, and fill it if bytes arrive fast.

        Raises OriginUnavailable if the response ends early or is too slow, OriginTimedOut if nothing arrives.
        """
        started_at, start_position = time.monotonic(), self.position
        view = buffer[: self.end - self.position]
        try:
            if self._has_known_length:
                self._receive_sized(view, started_at)
            else:
                self._receive_chunk(view)
        except _CONNECTION_ERRORS as error:
            raise unreachable_error(
                error, self._site, f" (in {self.entry.path!r} at byte {self.position})"
            ) from error
        count = self.position - start_position
        if not count:
            raise self._unavailable_error("the connection ended early")
        if self._meter.is_too_slow(count, time.monotonic() - started_at):
            raise self._unavailable_error("the connection is far slower than others; a new one may be faster")
        return count

    @property
    def _has_known_length(self) -> bool:
        return (
            self._body is not None
            and not self._body.chunked
            and self._body.length is not None
            and self._body.fp is not None
        )

    def _receive_sized(self, view: memoryview, started_at: float) -> None:
        """Read until `view` is full or a fraction of a window has passed.

        One receive for all of it would hide a slow connection for too long.
        """
        body = self._body
        assert body is not None
        assert body.length is not None
        view = view[: body.length]
        receive = body.fp.readinto1
        return_at = started_at + throughput.MEASURING_WINDOW / _CHECKS_PER_WINDOW
        while view:
            count = receive(view)
            if not count:
                return
            body.length -= count
            self.position += count
            view = view[count:]
            if time.monotonic() >= return_at:
                return

    def _receive_chunk(self, view: memoryview) -> None:
        """Read once from a body that is chunked or ends with the connection."""
        data = (self._body or self._response).read1(min(len(view), _CHUNKED_READ_BYTES))
        view[: len(data)] = data
        self.position += len(data)

    def _unavailable_error(self, reason: str) -> OriginUnavailable:
        return OriginUnavailable(f"{self._site}: {reason} (in {self.entry.path!r} at byte {self.position})")

    def finish(self) -> None:
        """Release the connection for the next request after all bytes were read, unless the origin sent more.

        Raises SourceChanged if a full response is longer than the file was, OriginUnavailable if its end did
        not arrive.
        """
        self._meter.end_window()
        try:
            # http.client only notices the end of the body by reading it, and only then is the connection
            # reusable.
            excess_bytes = len((self._body or self._response).read(1))
        except _CONNECTION_ERRORS as error:
            self.close()
            if self._is_whole_file:
                # Whether the file is longer now is unknown, so it has to be read again.
                raise unreachable_error(error, self._site, f" (at the end of {self.entry.path!r})") from error
            return
        if not excess_bytes:
            self._response.release_conn()
            return
        self.close()
        if self._is_whole_file:
            raise SourceChanged(
                f"{self.entry.path!r} has more than {self.end} bytes now, which it had when it was listed"
            )

    @property
    def _is_whole_file(self) -> bool:
        return self.is_full_response and self.end == self.entry.size

    def close(self) -> None:
        """Close the response and its connection."""
        self._response.close()


class SharedStreams:
    """Responses with whole files, passed on from reader to reader: where one stops, the next continues.

    At most one per file is kept, the furthest one, of at most two files (the second is one being read again),
    and none after the last reader was removed: an open response that nobody reads only fills socket buffers.
    """

    def __init__(self) -> None:
        self._streams: list[ResponseStream] = []
        self._readers = 0
        self._lock = threading.Lock()

    def add_reader(self) -> None:
        """Register a reader."""
        with self._lock:
            self._readers += 1

    def remove_reader(self) -> None:
        """Unregister a reader; the last one closes all streams."""
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._close(self._streams)

    def add_stream(self, stream: ResponseStream) -> None:
        """Leave a response for the next reader of its file."""
        with self._lock:
            # The furthest stream of each file wins; of other files the most recent one stays.
            same_file = sorted(
                (other for other in (*self._streams, stream) if other.entry == stream.entry), key=_position
            )
            others = [other for other in self._streams if other.entry != stream.entry]
            self._close([*same_file[:-1], *others[:-1]])
            self._streams = [*others[-1:], same_file[-1]]

    def take_stream(self, entry: Entry, offset: int) -> ResponseStream | None:
        """Take the furthest response that can still reach byte `offset` of `entry`, None if none can."""
        with self._lock:
            stream = max(
                (other for other in self._streams if other.can_reach(entry, offset)),
                key=_position,
                default=None,
            )
            if stream is not None:
                self._streams.remove(stream)
            return stream

    def _close(self, streams: list[ResponseStream]) -> None:
        for stream in streams:
            stream.close()
        self._streams = [stream for stream in self._streams if stream not in streams]


def _position(stream: ResponseStream) -> int:
    return stream.position
