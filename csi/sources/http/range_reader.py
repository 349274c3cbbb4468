"""Ranged reads over HTTP: byte ranges of files, straight into the caller's buffers, over reused connections.

The caller defines a file's URL, the headers to send, and how to tell that the file is still the listed one:
see `FileUrls`. This module follows redirects, keeps credentials from other hosts, remembers signed URLs until
they fail, and checks that the response has what was requested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from csi.errors import DataCacheError, OriginThrottled, OriginUnavailable, RangesIgnored, SourceChanged
from csi.manifest.manifest import Entry
from csi.manifest.reader import ManyReader, PendingFiles, RequestPermits
from csi.sources.http.batch_fetch import BatchFetch
from csi.sources.http.connections import Connections, discard
from csi.sources.http.curl_fetch import MAX_BODY_BYTES
from csi.sources.http.file_urls import (
    EXPIRED_STATUSES,
    MAX_REDIRECTS,
    REDIRECT_STATUSES,
    FileUrl,
    FileUrls,
    Response,
    follow_redirect,
    too_many_redirects_error,
)
from csi.sources.http.streaming_fetch import ResponseStream

_SKIP_BUFFER_BYTES = 1 << 18
# Some mirrors ignore ranges for small files. Up to this size, reading and dropping the start of a file costs
# less than giving up parallel reads.
_MAX_REREAD_BYTES = 4 << 20


class RangeReader(ManyReader):
    """Reader of file ranges, for one thread at a time; a context manager."""

    def __init__(self, connections: Connections, file_urls: FileUrls) -> None:
        self._connections, self._file_urls = connections, file_urls
        self._stream: ResponseStream | None = None
        self._ranges_ignored = False

    def __enter__(self) -> RangeReader:
        self._file_urls.shared_streams.add_reader()
        return self

    def __exit__(self, *_: object) -> None:
        # Only now: RangesIgnored has limited the fill to one reader by the time this one is closed. Shared
        # earlier, the flag would let readers out of order pass streams to each other.
        self._file_urls.reads_in_order |= self._ranges_ignored
        self._share_stream()
        self._close_stream()
        self._file_urls.shared_streams.remove_reader()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `entry` from byte `offset`, as `Reader.read_into`.

        A read beyond the end of the file raises SourceChanged without a request. OriginThrottled has the
        origin's Retry-After. RangesIgnored is raised once, after a large file came completely: from then on
        reads should be in order.
        """
        if offset + len(buffer) > entry.size:
            raise SourceChanged(
                f"{entry.path!r} has {entry.size} bytes; {len(buffer)} from byte {offset} were requested"
            )
        # Origins may send less than requested, and then the rest needs another request.
        done = 0
        while done < len(buffer):
            stream = self._get_stream(entry, offset + done, offset + len(buffer))
            done += self._read(stream, buffer[done:])
        self._share_stream()

    def get_response(
        self, entry: Entry, headers: Mapping[str, str], max_bytes: int = 0
    ) -> tuple[Response, FileUrl]:
        """Return the final response to a GET of `entry`, whatever its status, and its URL.

        Redirects are followed. The caller reads or discards the body. `max_bytes` above 0 lets libcurl fetch
        it, cut to that size and one byte more; where only a stream can be used, it is not cut.
        """
        file_url = self._file_urls.get_first_url(entry)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(file_url, headers, entry, max_bytes)
            if response.status not in REDIRECT_STATUSES:
                # The plain first URL of a file need not be remembered: building it again costs nothing.
                if response.status in (200, 206) and (self._file_urls.is_signed or not file_url.is_at_origin):
                    self._file_urls.remember(entry, file_url)
                return response, file_url
            file_url = follow_redirect(response, file_url)
        raise too_many_redirects_error(file_url, entry)

    def read_many(self, pending: PendingFiles, permits: RequestPermits) -> dict[Entry, OriginUnavailable]:
        """Read small files in a batch, as `ManyReader.read_many`.

        Files behind a proxy stay pending, and so do those of a TLS site requested before its first response.
        """
        return BatchFetch(self._connections, self._file_urls, permits).run(pending)

    def _get_stream(self, entry: Entry, offset: int, end: int) -> ResponseStream:
        """Return an open response whose next byte is `offset` of `entry`, an existing one if possible."""
        if self._stream is not None and self._stream.position != offset:
            # Another reader may have shared a stream that is further.
            self._share_stream()
        stream = self._stream
        if stream is None or not stream.can_reach(entry, offset):
            self._close_stream()
            self._stream = stream = self._file_urls.shared_streams.take_stream(
                entry, offset
            ) or self._open_stream(entry, offset, end)
        if stream.position < offset:
            self._skip(stream, offset)
        return stream

    def _skip(self, stream: ResponseStream, offset: int) -> None:
        if stream.is_full_response and not self._can_read_in_order(stream.entry):
            self._ranges_ignored = True
            raise RangesIgnored(
                f"the origin sends all of {stream.entry.path!r} although a part was requested; "
                "its files are read in order from now on"
            )
        scratch = memoryview(bytearray(_SKIP_BUFFER_BYTES))
        while stream.position < offset:
            self._read(stream, scratch[: offset - stream.position])

    def _can_read_in_order(self, entry: Entry) -> bool:
        return entry.size <= _MAX_REREAD_BYTES or self._file_urls.reads_in_order or self._ranges_ignored

    def _read(self, stream: ResponseStream, buffer: memoryview) -> int:
        try:
            count = stream.read(buffer)
            # Forgotten first: `finish` releases or closes the stream itself, and may raise SourceChanged.
            if stream.position == stream.end:
                self._stream = None
                stream.finish()
        except DataCacheError:
            self._close_stream()
            raise
        return count

    def _share_stream(self) -> None:
        if self._stream is not None and self._stream.is_full_response and self._file_urls.reads_in_order:
            self._file_urls.shared_streams.add_stream(self._stream)
            self._stream = None

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open_stream(self, entry: Entry, offset: int, end: int) -> ResponseStream:
        """Request bytes `offset` to `end` of `entry` and check the response.

        The remembered URL is used if it still works.
        """
        range_headers = self._file_urls.build_range_headers(entry, offset, end)
        cached_url = self._file_urls.find_cached(entry)
        # A small file that is requested completely goes through libcurl, which is faster.
        max_bytes = entry.size if end - offset == entry.size <= MAX_BODY_BYTES else 0
        if cached_url is not None:
            with self._forget_on_failure(entry, cached_url):
                response = self._send(cached_url, range_headers, entry, max_bytes)
                if response.status not in EXPIRED_STATUSES:
                    return self._build_stream(response, cached_url, entry, offset, end)
            discard(response)
            self._file_urls.forget(entry, cached_url)
        response, file_url = self.get_response(entry, range_headers, max_bytes)
        if self._file_urls.may_have_expired(file_url, response.status) and cached_url is None:
            # The signed URL may have expired between being issued and being used.
            discard(response)
            response, file_url = self.get_response(entry, range_headers, max_bytes)
        return self._build_stream(response, file_url, entry, offset, end)

    @contextmanager
    def _forget_on_failure(self, entry: Entry, file_url: FileUrl) -> Iterator[None]:
        """Forget a remembered URL if the request fails: the first address may lead elsewhere by then."""
        try:
            yield
        except OriginUnavailable as error:
            if not isinstance(error, OriginThrottled):
                self._file_urls.forget(entry, file_url)
            raise

    def _send(
        self, file_url: FileUrl, request_headers: Mapping[str, str], entry: Entry, max_bytes: int
    ) -> Response:
        """Send one GET; `max_bytes` is the expected size of a small body, 0 if it is large."""
        rate_limits = self._file_urls.rate_limits
        rate_limits.check(file_url.url)
        headers = self._file_urls.build_headers(file_url, request_headers)
        try:
            response: Response | None = (
                self._connections.get_with_curl(file_url.url, headers, file_url.origin_site, max_bytes)
                if max_bytes
                else None
            )
            response = response or self._connections.get(file_url.url, headers, file_url.origin_site)
        except OriginUnavailable as error:
            raise type(error)(f"{error} (requesting {entry.path!r})") from error
        rate_limits.update(file_url.url, response.headers)
        return response

    def _build_stream(
        self, response: Response, file_url: FileUrl, entry: Entry, offset: int, end: int
    ) -> ResponseStream:
        try:
            start, end = self._file_urls.get_byte_span(response, file_url, entry, offset, end)
            return ResponseStream(
                response,
                file_url.url,
                entry,
                start,
                end,
                self._connections.baseline,
            )
        except DataCacheError:
            discard(response)
            raise
