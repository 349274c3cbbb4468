"""URLs of a source's files, headers to send there, and the check that a file is still the listed one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urljoin

import urllib3

from csi.errors import DataCacheError, OriginUnavailable, PermissionDenied
from csi.manifest.manifest import Entry
from csi.sources.http.connections import discard
from csi.sources.http.curl_response import CurlResponse
from csi.sources.http.rate_limit_headers import RateLimitTracker
from csi.sources.http.response_checks import (
    check_full_response,
    check_range_end,
    source_changed_error,
    status_error,
)
from csi.sources.http.sites import Site, format_site, parse_site
from csi.sources.http.streaming_fetch import SharedStreams

# Hubs need one or two redirects; more are a loop.
MAX_REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
EXPIRED_STATUSES = (400, 401, 403, 410, *REDIRECT_STATUSES)
"""Statuses of an expired signed URL: S3 and CDNs answer 403, S3 400 for a session token, some hubs 401,
some 410.
"""
# URLs remembered for one source; signed ones are long.
_MAX_CACHED_URLS = 1024

StatusErrorMapper = Callable[[int, Mapping[str, str]], DataCacheError | None]
HeadersForEntry = Callable[[Entry], Mapping[str, str]]
UnchangedCheck = Callable[[Entry, Mapping[str, str]], bool]
Response = urllib3.BaseHTTPResponse | CurlResponse


class FileUrl(NamedTuple):
    """The URL that a file's bytes came from, with the site that may get credentials.

    `origin_site` is the site of the first address, or of the document that named it.
    """

    url: str
    origin_site: Site

    @property
    def is_at_origin(self) -> bool:
        """Whether the URL is on that site."""
        return parse_site(self.url) == self.origin_site


@dataclass
class FileUrls:
    """URLs of files: `build_url` returns the first address.

    `headers` (including credentials) go to its site only.

    `error_for_status` may translate an error status of that site, and its headers, into a more specific
    error. With `is_signed`, `build_url` signs URLs that expire: each is used until it is refused, then a new
    one is requested, once.

    `origin_site` is set if the first addresses are only another site's statement: then only that site gets
    `headers`, and all others are checked as redirects from it.

    `condition_headers` are headers for one file (If-Match) that are sent to every host; a 412 raises
    SourceChanged. `is_unchanged` is called with the headers of every response that has bytes; False raises
    SourceChanged, in the middle of a file too.

    Signed URLs, redirect targets and rate limits are shared by all readers of one source. `reads_in_order` is
    set once the origin sent a large file completely although a part was requested: then one stream is passed
    on from reader to reader.
    """

    build_url: Callable[[Entry], str]
    headers: Mapping[str, str] = field(default_factory=dict)
    error_for_status: StatusErrorMapper = lambda status, headers: None
    is_signed: bool = False
    condition_headers: HeadersForEntry = lambda entry: {}
    is_unchanged: UnchangedCheck = lambda entry, headers: True
    origin_site: Site | None = None
    rate_limits: RateLimitTracker = field(default_factory=RateLimitTracker, init=False, repr=False)
    reads_in_order: bool = field(default=False, init=False)
    shared_streams: SharedStreams = field(default_factory=SharedStreams, init=False, repr=False)
    _cached: dict[str, FileUrl] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def find_cached(self, entry: Entry) -> FileUrl | None:
        """Return the last remembered URL of the file, if it is among the recently read files."""
        # Without the lock: one dict lookup is atomic in CPython, and this runs for every range.
        return self._cached.get(entry.path)

    def remember(self, entry: Entry, file_url: FileUrl) -> None:
        """Remember that the file's bytes came from `file_url`, for the next range."""
        with self._lock:
            self._cached.pop(entry.path, None)
            self._cached[entry.path] = file_url
            # Files are read in order, so the oldest URLs are not needed again; a source may have millions of
            # files.
            if len(self._cached) > _MAX_CACHED_URLS:
                del self._cached[next(iter(self._cached))]

    def forget(self, entry: Entry, file_url: FileUrl) -> None:
        """Forget `file_url`, which is refused now; a newer URL found by another reader stays."""
        with self._lock:
            if self._cached.get(entry.path) == file_url:
                del self._cached[entry.path]

    def get_first_url(self, entry: Entry) -> FileUrl:
        """Return the URL to request the file from if none is cached."""
        url = self.build_url(entry)
        return FileUrl(url, self.origin_site or parse_site(url))

    def build_headers(self, file_url: FileUrl, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return `headers`, with the credentials added if the URL is at the origin."""
        return {**self.headers, **headers} if file_url.is_at_origin else headers

    def build_range_headers(self, entry: Entry, offset: int, end: int) -> dict[str, str]:
        """Return the headers that request bytes `offset` to `end` of the listed file."""
        return {
            **self.condition_headers(entry),
            "Range": f"bytes={offset}-{end - 1}",
            "Accept-Encoding": "identity",
        }

    def may_have_expired(self, file_url: FileUrl, status: int) -> bool:
        """Return whether a fresh URL might avoid this status."""
        return status in EXPIRED_STATUSES and (self.is_signed or not file_url.is_at_origin)

    def response_error(self, response: Response, file_url: FileUrl, entry: Entry) -> DataCacheError:
        """Translate an error status; only the origin's own site gets the source-specific translation."""
        error = self.error_for_status(response.status, response.headers) if file_url.is_at_origin else None
        return error or status_error(response.status, response.headers, file_url.url, entry)

    def get_byte_span(
        self, response: Response, file_url: FileUrl, entry: Entry, offset: int, end: int
    ) -> tuple[int, int]:
        """Return the first byte and the end of the range in a response to `build_range_headers`.

        Raises an error if the response has no bytes, or those of another file.
        """
        if response.status not in (200, 206):
            raise self.response_error(response, file_url, entry)
        if not self.is_unchanged(entry, response.headers):
            raise source_changed_error(entry, file_url.url)
        if response.status == 206:
            return offset, check_range_end(response.headers, file_url.url, entry, offset, end)
        check_full_response(response.headers, file_url.url, entry)
        return 0, entry.size


def follow_redirect(response: Response, file_url: FileUrl) -> FileUrl:
    """Return the target of a redirect and discard its body.

    Raises OriginUnavailable for a missing or unusable target, PermissionDenied for a redirect from https to
    http.
    """
    url = file_url.url
    location = response.headers.get("Location", "")
    discard(response)
    try:
        target = urljoin(url, location)
        scheme = parse_site(target)[0]
    except (ValueError, OriginUnavailable) as error:
        raise OriginUnavailable(
            f"{format_site(url)}: it redirects to an address that is not an http or https URL"
        ) from error
    if not location:
        raise OriginUnavailable(f"{format_site(url)}: it redirects without a Location")
    if parse_site(url)[0] == "https" and scheme != "https":
        raise PermissionDenied(
            f"{format_site(url)} redirects from https to {scheme} ({format_site(target)}), "
            "where anybody could change the data"
        )
    return file_url._replace(url=target)


def too_many_redirects_error(file_url: FileUrl, entry: Entry) -> OriginUnavailable:
    """Create the error for a redirect after MAX_REDIRECTS others."""
    return OriginUnavailable(
        f"{format_site(file_url.url)}: more than {MAX_REDIRECTS} redirects for {entry.path!r}"
    )
