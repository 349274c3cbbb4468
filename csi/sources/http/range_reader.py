"""Ranged reads over HTTP: byte ranges of files straight into the caller's buffers, over reused connections.

What a file's address is, what is sent along, and what tells that the file is still the one that was listed, is the
caller's: see `FileUrls`. This module follows redirects, keeps credentials from other hosts, remembers signed addresses until
they fail, and checks that what comes is what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from csi.errors import DataCacheError, OriginThrottled, OriginUnavailable, RangesIgnored, SourceChanged
from csi.manifest.manifest import Entry
from csi.manifest.reader import PendingFiles, RequestPermits
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
# Some mirrors send small files whole whatever is asked for: what is read in vain then is less than what reading in order would cost.
_MAX_REREAD_BYTES = 4 << 20


class RangeReader:
    """Reads ranges of files; for one thread at a time, as a context. Implements `csi.manifest.reader.Reader`."""

    def __init__(self, connections: Connections, file_urls: FileUrls) -> None:
        self._connections, self._file_urls = connections, file_urls
        self._stream: ResponseStream | None = None
        self._ranges_ignored = False

    def __enter__(self) -> RangeReader:
        self._file_urls.shared_streams.add_reader()
        return self

    def __exit__(self, *_: object) -> None:
        # Not before: who heard of it from this reader reads in order by now.
        self._file_urls.reads_in_order |= self._ranges_ignored
        self._share_stream()
        self._close_stream()
        self._file_urls.shared_streams.remove_reader()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` with the bytes of `entry` from byte `offset` on; see `Reader.read_into`.

        A read beyond the end of the file is SourceChanged without a request. OriginThrottled has the origin's Retry-After.
        RangesIgnored is raised once, where a large file came whole: from then on reads should be in order.
        """
        if offset + len(buffer) > entry.size:
            raise SourceChanged(
                f"{entry.path!r} has {entry.size} bytes; {len(buffer)} from byte {offset} on were asked for"
            )
        done = 0
        while done < len(buffer):
            stream = self._get_stream(entry, offset + done, offset + len(buffer))
            done += self._read(stream, buffer[done:])
        self._share_stream()

    def get_response(
        self, entry: Entry, headers: Mapping[str, str], max_bytes: int = 0
    ) -> tuple[Response, FileUrl]:
        """The last answer to a GET of `entry`, redirects followed, whatever its status, and where it is from; the caller reads or drops its body.

        Of the body come at most `max_bytes` bytes and one more, or all where that is 0.
        """
        return self._follow_redirects(entry, headers, max_bytes)

    def read_many(self, pending: PendingFiles, permits: RequestPermits) -> dict[Entry, OriginUnavailable]:
        """See `csi.manifest.reader.ManyReader`. What is behind a proxy is left, and of a site with TLS what is asked for before its first answer."""
        return BatchFetch(self._connections, self._file_urls, permits).run(pending)

    def _get_stream(self, entry: Entry, offset: int, end: int) -> ResponseStream:
        """An open answer whose next byte is `offset` of `entry`: the one at hand where it goes on, else a new request."""
        if self._stream is not None and self._stream.position != offset:
            # Another reader may have left one that is further.
            self._share_stream()
        stream = self._stream
        if stream is None or not stream.can_reach(entry, offset):
            self._close_stream()
            self._stream = stream = self._file_urls.shared_streams.take(entry, offset) or self._open_stream(
                entry, offset, end
            )
        if stream.position < offset:
            self._skip(stream, offset)
        return stream

    def _skip(self, stream: ResponseStream, offset: int) -> None:
        if stream.is_full_response and not self._can_read_in_order(stream.entry):
            self._ranges_ignored = True
            raise RangesIgnored(
                f"the origin sends all of {stream.entry.path!r} where a part was asked for; its files are read in order from now on"
            )
        scratch = memoryview(bytearray(_SKIP_BUFFER_BYTES))
        while stream.position < offset:
            self._read(stream, scratch[: offset - stream.position])

    def _can_read_in_order(self, entry: Entry) -> bool:
        return entry.size <= _MAX_REREAD_BYTES or self._file_urls.reads_in_order or self._ranges_ignored

    def _read(self, stream: ResponseStream, buffer: memoryview) -> int:
        try:
            count = stream.read(buffer)
            if stream.position == stream.end:
                self._stream = None
                stream.finish()
        except DataCacheError:
            self._close_stream()
            raise
        return count

    def _share_stream(self) -> None:
        if self._stream is not None and self._stream.is_full_response and self._file_urls.reads_in_order:
            self._file_urls.shared_streams.put(self._stream)
            self._stream = None

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open_stream(self, entry: Entry, offset: int, end: int) -> ResponseStream:
        """A new answer for bytes `offset` to `end` of `entry`, checked; through the remembered address, if it still works."""
        range_headers = self._file_urls.build_range_headers(entry, offset, end)
        cached_url = self._file_urls.find_cached(entry)
        max_bytes = entry.size if end - offset == entry.size <= MAX_BODY_BYTES else 0
        if cached_url is not None:
            with self._forget_on_failure(entry, cached_url):
                response = self._send(cached_url, range_headers, entry, max_bytes)
                if response.status not in EXPIRED_STATUSES:
                    return self._build_stream(response, cached_url, entry, offset, end)
            discard(response)
            self._file_urls.forget(entry, cached_url)
        response, file_url = self._follow_redirects(entry, range_headers, max_bytes)
        if self._file_urls.may_have_expired(file_url, response.status) and cached_url is None:
            # It may have ended between being given out and being asked.
            discard(response)
            response, file_url = self._follow_redirects(entry, range_headers, max_bytes)
        return self._build_stream(response, file_url, entry, offset, end)

    @contextmanager
    def _forget_on_failure(self, entry: Entry, file_url: FileUrl) -> Iterator[None]:
        """Where a remembered address gives no answer, or a bad one, the next try asks the first address, which may lead elsewhere by then."""
        try:
            yield
        except OriginUnavailable as error:
            if not isinstance(error, OriginThrottled):
                self._file_urls.forget(entry, file_url)
            raise

    def _send(
        self, file_url: FileUrl, request_headers: Mapping[str, str], entry: Entry, max_bytes: int
    ) -> Response:
        """`max_bytes` is how many bytes of body there should be where they are few, else 0."""
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
            raise type(error)(f"{error} (asked for {entry.path!r})") from error
        rate_limits.update(file_url.url, response.headers)
        return response

    def _follow_redirects(
        self, entry: Entry, request_headers: Mapping[str, str], max_bytes: int
    ) -> tuple[Response, FileUrl]:
        """Ask the first address and go where it sends; returns the last answer and where it is from."""
        file_url = self._file_urls.get_first_url(entry)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(file_url, request_headers, entry, max_bytes)
            if response.status not in REDIRECT_STATUSES:
                if response.status in (200, 206) and (self._file_urls.is_signed or not file_url.is_at_origin):
                    self._file_urls.remember(entry, file_url)
                return response, file_url
            file_url = follow_redirect(response, file_url)
        raise too_many_redirects_error(file_url, entry)

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
                is_full_response=response.status == 200,
            )
        except DataCacheError:
            discard(response)
            raise
