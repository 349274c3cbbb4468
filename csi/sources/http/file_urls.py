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
from csi.sources.http.connections import Site, drop, shown_site, site
from csi.sources.http.curl_fetch import SmallAnswer
from csi.sources.http.rate_limit_headers import Allowances
from csi.sources.http.response_checks import changed, check_whole, failure, range_end
from csi.sources.http.streaming_fetch import SharedStreams

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
ENDED = (400, 401, 403, 410, *REDIRECTS)
"""A signed address that ended: S3 and CDNs say 403, S3 says 400 of a session's token, some hubs 401, some 410."""
_REMEMBERED = 1024

Refusal = Callable[[int, Mapping[str, str]], DataCacheError | None]
Headers = Callable[[Entry], Mapping[str, str]]
Judge = Callable[[Entry, Mapping[str, str]], bool]
Answer = urllib3.BaseHTTPResponse | SmallAnswer


class Address(NamedTuple):
    """Where a file's bytes came from; `home` is the site that credentials go to: that of its first address, or of who named that."""

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
    `home` is set where another site's word is all there is for the first addresses: only that site gets `headers`, and all others are
    judged as what it redirects to.
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
    home: Site | None = None
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

    def first(self, entry: Entry) -> Address:
        """Where to ask for the file, unless it is known better."""
        url = self.url_of(entry)
        return Address(url, self.home or site(url))

    def asked(self, address: Address, headers: Mapping[str, str]) -> Mapping[str, str]:
        """`headers` and, at home, what goes along there."""
        return {**self.headers, **headers} if address.at_home else headers

    def range_of(self, entry: Entry, offset: int, end: int) -> dict[str, str]:
        """The headers that ask for bytes `offset` to `end` of the file as it was listed."""
        return {**self.conditions(entry), "Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity"}

    def may_have_ended(self, address: Address, status: int) -> bool:
        """Whether a new address may be answered better than this status."""
        return status in ENDED and (self.signs or not address.at_home)

    def refused(self, answer: Answer, address: Address, entry: Entry) -> DataCacheError:
        """What an error status means: in the source's own words where it is of the site that credentials go to."""
        refusal = self.refusal(answer.status, answer.headers) if address.at_home else None
        return refusal or failure(answer.status, answer.headers, address.url, entry)

    def span(self, answer: Answer, address: Address, entry: Entry, offset: int, end: int) -> tuple[int, int]:
        """Which bytes of the file an answer to `range_of` holds, first and behind the last; raises where it holds none, or those of another file."""
        if answer.status not in (200, 206):
            raise self.refused(answer, address, entry)
        if not self.unchanged(entry, answer.headers):
            raise changed(entry, address.url)
        if answer.status == 206:
            return offset, range_end(answer.headers, address.url, entry, offset, end)
        check_whole(answer.headers, address.url, entry)
        return 0, entry.size


def next_address(response: Answer, address: Address) -> Address:
    """Where a redirect leads; its body is dropped. Raises OriginUnavailable for nowhere, PermissionDenied for a way out of TLS."""
    url = address.url
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
    return address._replace(url=target)


def redirected_too_often(address: Address, entry: Entry) -> OriginUnavailable:
    """An answer behind MAX_REDIRECTS redirects leads on."""
    return OriginUnavailable(f"{shown_site(address.url)}: more than {MAX_REDIRECTS} redirects for {entry.path!r}")
