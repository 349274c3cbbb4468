"""Where the files of a source are over HTTP: first addresses, what goes along, what tells that a file is still the one that was listed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urljoin

import urllib3

from csi.errors import DataCacheError, OriginUnavailable, PermissionDenied
from csi.manifest.manifest import Entry
from csi.sources.http.connections import Site, discard, format_site, parse_site
from csi.sources.http.curl_fetch import CurlResponse
from csi.sources.http.rate_limit_headers import RateLimitTracker
from csi.sources.http.response_checks import (
    check_full_response,
    check_range_end,
    source_changed_error,
    status_error,
)
from csi.sources.http.streaming_fetch import SharedStreams

MAX_REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
EXPIRED_STATUSES = (400, 401, 403, 410, *REDIRECT_STATUSES)
"""A signed address that ended: S3 and CDNs say 403, S3 says 400 of a session's token, some hubs 401, some 410."""
_MAX_CACHED_URLS = 1024

StatusErrorMapper = Callable[[int, Mapping[str, str]], DataCacheError | None]
HeadersForEntry = Callable[[Entry], Mapping[str, str]]
UnchangedCheck = Callable[[Entry, Mapping[str, str]], bool]
Response = urllib3.BaseHTTPResponse | CurlResponse


class FileUrl(NamedTuple):
    """Where a file's bytes came from; `origin_site` is the site that credentials go to: that of its first address, or of who named that."""

    url: str
    origin_site: Site

    @property
    def is_at_origin(self) -> bool:
        """Whether this is on that site."""
        return parse_site(self.url) == self.origin_site


@dataclass
class FileUrls:
    """Where files are: `build_url` gives the first address, `headers` (a credential among them) go to that address's site only.

    `error_for_status` may turn an error status of that site, and its headers, into an error in the source's own words. With
    `is_signed`, `build_url` signs addresses that end: each is used until it is refused, then it is asked for a new one, once.
    `origin_site` is set where another site's word is all there is for the first addresses: only that site gets `headers`, and all others are
    judged as what it redirects to.
    `condition_headers` are headers of one file (If-Match) that go along to every host; an answer 412 is SourceChanged. `is_unchanged` is asked
    with the headers of every answer that has bytes; False is SourceChanged, in the middle of a file too.
    What was signed, where redirects led to and what each site allows is shared by all readers of one source. `reads_in_order` is set
    once the origin sent a large file whole where a part was asked for: then one stream is read on from reader to reader.
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
        """What `remember` was told last, of the last files that were read."""
        return self._cached.get(entry.path)

    def remember(self, entry: Entry, file_url: FileUrl) -> None:
        """The file's bytes came from `file_url`: the next range may ask there."""
        with self._lock:
            self._cached.pop(entry.path, None)
            self._cached[entry.path] = file_url
            # Files are read one after the other: what is behind would only take memory, in a source of many files.
            if len(self._cached) > _MAX_CACHED_URLS:
                del self._cached[next(iter(self._cached))]

    def forget(self, entry: Entry, file_url: FileUrl) -> None:
        """`file_url` is refused now; a newer one that another reader found stays."""
        with self._lock:
            if self._cached.get(entry.path) == file_url:
                del self._cached[entry.path]

    def get_first_url(self, entry: Entry) -> FileUrl:
        """Where to ask for the file, unless it is known better."""
        url = self.build_url(entry)
        return FileUrl(url, self.origin_site or parse_site(url))

    def build_headers(self, file_url: FileUrl, headers: Mapping[str, str]) -> Mapping[str, str]:
        """`headers` and, at home, what goes along there."""
        return {**self.headers, **headers} if file_url.is_at_origin else headers

    def build_range_headers(self, entry: Entry, offset: int, end: int) -> dict[str, str]:
        """The headers that ask for bytes `offset` to `end` of the file as it was listed."""
        return {
            **self.condition_headers(entry),
            "Range": f"bytes={offset}-{end - 1}",
            "Accept-Encoding": "identity",
        }

    def may_have_expired(self, file_url: FileUrl, status: int) -> bool:
        """Whether a new address may be answered better than this status."""
        return status in EXPIRED_STATUSES and (self.is_signed or not file_url.is_at_origin)

    def response_error(self, response: Response, file_url: FileUrl, entry: Entry) -> DataCacheError:
        """What an error status means: in the source's own words where it is of the site that credentials go to."""
        error = self.error_for_status(response.status, response.headers) if file_url.is_at_origin else None
        return error or status_error(response.status, response.headers, file_url.url, entry)

    def get_byte_span(
        self, response: Response, file_url: FileUrl, entry: Entry, offset: int, end: int
    ) -> tuple[int, int]:
        """Which bytes of the file an answer to `build_range_headers` holds, first and behind the last; raises where it holds none, or those of another file."""
        if response.status not in (200, 206):
            raise self.response_error(response, file_url, entry)
        if not self.is_unchanged(entry, response.headers):
            raise source_changed_error(entry, file_url.url)
        if response.status == 206:
            return offset, check_range_end(response.headers, file_url.url, entry, offset, end)
        check_full_response(response.headers, file_url.url, entry)
        return 0, entry.size


def follow_redirect(response: Response, file_url: FileUrl) -> FileUrl:
    """Where a redirect leads; its body is dropped. Raises OriginUnavailable for nowhere, PermissionDenied for a way out of TLS."""
    url = file_url.url
    location = response.headers.get("Location", "")
    discard(response)
    try:
        target = urljoin(url, location)
        scheme = parse_site(target)[0]
    except (ValueError, OriginUnavailable) as error:
        raise OriginUnavailable(
            f"{format_site(url)}: it redirects to an address that is no http or https URL"
        ) from error
    if not location:
        raise OriginUnavailable(f"{format_site(url)}: it redirects to nowhere")
    if parse_site(url)[0] == "https" and scheme != "https":
        raise PermissionDenied(
            f"{format_site(url)} redirects from https to {scheme} ({format_site(target)}), where anybody could change what comes"
        )
    return file_url._replace(url=target)


def too_many_redirects_error(file_url: FileUrl, entry: Entry) -> OriginUnavailable:
    """An answer behind MAX_REDIRECTS redirects leads on."""
    return OriginUnavailable(
        f"{format_site(file_url.url)}: more than {MAX_REDIRECTS} redirects for {entry.path!r}"
    )
