"""One open answer of an origin: its bytes as they come, into the caller's buffer, and an eye on how they come."""

from __future__ import annotations

import http.client
import threading
import time

import urllib3

from csi.errors import OriginUnavailable, SourceChanged
from csi.sources.connections import shown_site, unreachable
from csi.sources.tempo import Meter, Tempo
from csi.spec.manifest import Entry

_COPIED = 1 << 16
_BROKEN = (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError)


class Stream:
    """An open answer: `response` holds bytes `position` to `end` of `entry`; `whole` where it is the answer of an origin that was asked for less."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse, url: str, entry: Entry, position: int, end: int, tempo: Tempo, whole: bool = False
    ) -> None:
        self.entry, self.position, self.end, self.whole = entry, position, end, whole
        self._response, self._site, self._meter = response, shown_site(url), Meter(tempo)
        # urllib3's own reads copy; below them is the http.client body, whose file reads into the buffer itself (a fifth less CPU).
        body = getattr(response, "_fp", None)
        self._body = body if isinstance(body, http.client.HTTPResponse) else None

    def reaches(self, entry: Entry, offset: int) -> bool:
        """Whether byte `offset` of `entry` is still to come."""
        return entry == self.entry and self.position <= offset < self.end

    def read(self, buffer: memoryview) -> int:
        """At least one byte into `buffer`, as many as are there.

        Raises OriginUnavailable when the answer ends early or trickles, OriginTimedOut when nothing comes.
        """
        began = time.monotonic()
        try:
            count = self._receive(buffer[: self.end - self.position])
        except _BROKEN as error:
            raise unreachable(error, self._site, f" (in {self.entry.path!r} at byte {self.position})") from error
        if not count:
            raise self._unavailable("the connection ended early")
        self.position += count
        if self._meter.trickles(count, time.monotonic() - began):
            raise self._unavailable("the connection gives far less than others do, a fresh one may give more")
        return count

    def _receive(self, view: memoryview) -> int:
        """What one receive from the socket gives: one that waited for the whole of `view` would not see a trickle."""
        body = self._body
        if body is None or body.chunked or body.fp is None:
            data = body.read1(min(len(view), _COPIED)) if body is not None else self._response.read(min(len(view), _COPIED))
            view[: len(data)] = data
            return len(data)
        if body.length is None:
            return body.fp.readinto1(view)
        count = body.fp.readinto1(view[: body.length])
        body.length -= count
        return count

    def _unavailable(self, what: str) -> OriginUnavailable:
        return OriginUnavailable(f"{self._site}: {what} (in {self.entry.path!r} at byte {self.position})")

    def finish(self) -> None:
        """All bytes that count were read: the connection is free for the next request, unless more than that was sent.

        Raises SourceChanged when a whole file goes on where it should end.
        """
        self._meter.end()
        try:
            # Lets http.client see the end of the body.
            more = self._body.readinto(bytearray(1)) if self._body is not None else 1
        except _BROKEN:
            more = 1
        if not more:
            self._response.release_conn()
            return
        self.close()
        if self.whole and self._body is not None and self.end == self.entry.size:
            raise SourceChanged(f"{self.entry.path!r} has more than {self.end} bytes now, which it had when it was listed")

    def close(self) -> None:
        """Be done with the answer and its connection."""
        self._response.close()


class SharedStreams:
    """Answers that hold whole files, passed on from reader to reader: what one has read up to, the next goes on from.

    One a file is kept, that which is furthest, of at most two files (the second is one that is read again), and none once the
    last of the readers that `joined` has `left`: what nobody takes only fills buffers.
    """

    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self._readers = 0
        self._guard = threading.Lock()

    def joined(self) -> None:
        """One more reader."""
        with self._guard:
            self._readers += 1

    def left(self) -> None:
        """One reader fewer."""
        with self._guard:
            self._readers -= 1
            if not self._readers:
                self._close(self._streams)

    def put(self, stream: Stream) -> None:
        """Leave an answer for the next reader of its file."""
        with self._guard:
            same = sorted((other for other in (*self._streams, stream) if other.entry == stream.entry), key=_position)
            others = [other for other in self._streams if other.entry != stream.entry]
            self._close([*same[:-1], *others[:-1]])
            self._streams = [*others[-1:], same[-1]]

    def take(self, entry: Entry, offset: int) -> Stream | None:
        """Of the answers that were left and in which byte `offset` of `entry` is still to come, the one that is furthest."""
        with self._guard:
            found = max((stream for stream in self._streams if stream.reaches(entry, offset)), key=_position, default=None)
            if found is not None:
                self._streams.remove(found)
            return found

    def _close(self, streams: list[Stream]) -> None:
        for stream in streams:
            stream.close()
        self._streams = [stream for stream in self._streams if stream not in streams]


def _position(stream: Stream) -> int:
    return stream.position
