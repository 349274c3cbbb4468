"""Batched fetch of many small files: one thread with several connections.

It takes a third of the time of one request after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from csi.errors import DataCacheError, OriginUnavailable
from csi.manifest.manifest import Entry
from csi.manifest.reader import PendingFiles, RequestPermits
from csi.sources.http.connections import Connections, unreachable_error
from csi.sources.http.curl_fetch import CurlRequest, FetchOutcome, can_send_verbatim
from csi.sources.http.curl_response import CurlResponse
from csi.sources.http.file_urls import (
    MAX_REDIRECTS,
    REDIRECT_STATUSES,
    FileUrl,
    FileUrls,
    follow_redirect,
    too_many_redirects_error,
)
from csi.sources.http.sites import Site, format_site, parse_site


class _PendingFile(NamedTuple):
    """A file still to fetch, number `number` of the batch, `redirects` redirects after its first address.

    `has_new_url` is set after one of its URLs was refused.
    """

    number: int
    entry: Entry
    buffer: memoryview
    file_url: FileUrl
    redirects: int = 0
    has_new_url: bool = False

    # Files of one route share a client: same target, same origin that redirected there.
    @property
    def route(self) -> tuple[Site, Site]:
        return parse_site(self.file_url.url), self.file_url.origin_site


class BatchFetch:
    """One batch of files of one source; `run` is called once."""

    def __init__(self, connections: Connections, file_urls: FileUrls, permits: RequestPermits) -> None:
        self._connections, self._file_urls, self._permits = connections, file_urls, permits
        self._completed: set[int] = set()
        self._requeued: list[_PendingFile] = []
        self._remaining = 0
        self._has_ended = False
        self._failed: dict[Entry, OriginUnavailable] = {}
        self._error: DataCacheError | None = None

    def run(self, pending: PendingFiles) -> dict[Entry, OriginUnavailable]:
        """Fetch the files, as `csi.manifest.reader.ManyReader.read_many`."""
        # Each round fetches a batch; its redirects and refused URLs make up the next one.
        batch = [
            _PendingFile(number, entry, buffer, self._get_url(entry))
            for number, (entry, buffer) in enumerate(pending)
        ]
        while batch and not self._has_ended:
            self._remaining, self._requeued = len(batch), []
            # Redirects and expired URLs put files back into `_requeued`, often for another route.
            for route, group in groupby(sorted(batch, key=_route), _route):
                self._fetch_route(route, list(group))
            batch = self._requeued
        self._remember_redirects(batch)
        pending[:] = [file for number, file in enumerate(pending) if number not in self._completed]
        if self._error is not None:
            raise self._error
        return self._failed

    def _get_url(self, entry: Entry) -> FileUrl:
        return self._file_urls.find_cached(entry) or self._file_urls.get_first_url(entry)

    def _fetch_route(self, route: tuple[Site, Site], files: list[_PendingFile]) -> None:
        client = self._connections.find_curl_client(files[0].file_url.url, route[1])
        if client is None:
            # Only the streaming client can send these; they stay pending for it.
            self._count_done(len(files))
            return
        started: list[_PendingFile] = []
        waiting = deque(files)
        for number, outcome in client.get_many(
            self._iter_requests(route, waiting, started), self._permits.can_start
        ):
            try:
                self._handle_outcome(started[number], outcome)
            except OriginUnavailable as error:
                self._failed[started[number].entry] = error
                self._has_ended = True
            except DataCacheError as error:
                self._has_ended, self._error = True, self._error or error
            self._count_done(1)
        self._remember_redirects(waiting)

    def _remember_redirects(self, files: Iterable[_PendingFile]) -> None:
        """Remember where unfetched files were redirected to, which saves the next reader the redirects."""
        for file in files:
            if file.redirects:
                self._file_urls.remember(file.entry, file.file_url)

    def _iter_requests(
        self, route: tuple[Site, Site], waiting: deque[_PendingFile], started: list[_PendingFile]
    ) -> Iterator[CurlRequest]:
        while file := self._next(route, waiting):
            headers = self._file_urls.build_headers(
                file.file_url, self._file_urls.build_range_headers(file.entry, 0, file.entry.size)
            )
            request = CurlRequest(file.file_url.url, file.route[0][1], headers, file.entry.size)
            if self._has_ended or self._end_if_rate_limited(file):
                # Back into the queue, so that its redirect is remembered.
                waiting.append(file)
                return
            if can_send_verbatim(request):
                started.append(file)
                yield request
            else:
                self._count_done(1)

    def _next(self, route: tuple[Site, Site], waiting: deque[_PendingFile]) -> _PendingFile | None:
        """Return the next file; one redirected to the same site goes before new ones."""
        if self._requeued and self._requeued[-1].route == route:
            self._remaining += 1
            return self._requeued.pop()
        return waiting.popleft() if waiting else None

    def _end_if_rate_limited(self, file: _PendingFile) -> bool:
        """End the batch if the site of `file` allows no further request now.

        Returns whether the batch has ended, for this reason or an earlier one.
        """
        try:
            self._file_urls.rate_limits.check(file.file_url.url)
        except OriginUnavailable as error:
            self._failed[file.entry] = error
            self._has_ended = True
        return self._has_ended

    def _count_done(self, count: int) -> None:
        self._remaining -= count
        self._permits.set_remaining(self._remaining + len(self._requeued))

    def _handle_outcome(self, file: _PendingFile, outcome: FetchOutcome) -> None:
        url = file.file_url.url
        if isinstance(outcome, OSError):
            self._file_urls.forget(file.entry, file.file_url)
            raise unreachable_error(
                outcome, format_site(url), f" (requesting {file.entry.path!r})"
            ) from outcome
        if outcome is None:
            # Nothing was sent. The file stays pending, and the streaming client reports why.
            self._file_urls.forget(file.entry, file.file_url)
            self._has_ended = True
            return
        self._file_urls.rate_limits.update(url, outcome.headers)
        if outcome.status in REDIRECT_STATUSES and file.redirects < MAX_REDIRECTS:
            self._requeued.append(
                file._replace(file_url=follow_redirect(outcome, file.file_url), redirects=file.redirects + 1)
            )
        elif outcome.status in REDIRECT_STATUSES:
            raise too_many_redirects_error(file.file_url, file.entry)
        elif self._file_urls.may_have_expired(file.file_url, outcome.status) and not file.has_new_url:
            self._file_urls.forget(file.entry, file.file_url)
            self._requeued.append(
                file._replace(
                    file_url=self._file_urls.get_first_url(file.entry), redirects=0, has_new_url=True
                )
            )
        elif self._copy_body(file, outcome):
            self._completed.add(file.number)
            self._permits.on_bytes_received(file.entry.size)

    def _copy_body(self, file: _PendingFile, response: CurlResponse) -> bool:
        """Copy the body into the file's buffer; return whether it was complete."""
        size = file.entry.size
        self._file_urls.get_byte_span(response, file.file_url, file.entry, 0, size)
        # One byte more than the file, to notice a longer body.
        body = response.read(size + 1)
        if len(body) != size:
            return False
        file.buffer[:] = body
        return True


def _route(file: _PendingFile) -> tuple[Site, Site]:
    return file.route
