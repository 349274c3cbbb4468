"""What the answers of origins over HTTP mean: whether they are what was asked for, and an error in words where they are not."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping

from csi.errors import DataCacheError, OriginThrottled, OriginUnavailable, PermissionDenied, SourceChanged, SourceNotFound, Unauthenticated
from csi.manifest.manifest import Entry
from csi.sources.http.connections import shown_site
from csi.sources.http.rate_limit_headers import renewal
from csi.values import MOST_DIGITS

_CONTENT_RANGE = re.compile(rf"bytes (\d{{1,{MOST_DIGITS}}})-(\d{{1,{MOST_DIGITS}}})/(\d{{1,{MOST_DIGITS}}}|\*)$")


def failure(status: int, headers: Mapping[str, str], url: str, entry: Entry) -> DataCacheError:
    """An error status in the words of `csi.errors`."""
    where = f"{shown_site(url)} answered {status} for {entry.path!r}"
    if status == 401:
        return Unauthenticated(f"{where}: it wants a credential, or refuses the one it was given")
    if status == 403:
        return PermissionDenied(f"{where}: this credential may not read it")
    if status in (404, 410):
        return SourceNotFound(f"{where}: it is not there any more")
    if status == 412:
        return changed(entry, url)
    if status == 416:
        return SourceChanged(f"{where}: the file is shorter than it was when it was listed ({entry.size} bytes)")
    return passing_fault(status, headers, where)


def changed(entry: Entry, url: str) -> SourceChanged:
    """The file is another one by what its origin says of it (an ETag, a version, a time)."""
    where = shown_site(url)
    return SourceChanged(f"{entry.path!r} on {where} has changed since it was listed; a new or updated cache picks the change up")


def passing_fault(status: int, headers: Mapping[str, str], where: str) -> OriginUnavailable:
    """OriginThrottled for 429 and 503, OriginUnavailable for the rest; `where` begins the message."""
    if status in (429, 503):
        wait = retry_after(headers) or renewal(headers)
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


def range_end(headers: Mapping[str, str], url: str, entry: Entry, offset: int, end: int) -> int:
    """The end of the range that came; fewer bytes than asked for are fine, another place or another file is not."""
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    _check_encoding(headers, url, entry)
    if match is None or int(match[1]) != offset or not offset < int(match[2]) + 1 <= end:
        raise OriginUnavailable(f"{shown_site(url)}: it sent another range of {entry.path!r} than was asked for (bytes {offset} to {end - 1})")
    if match[3] not in ("*", str(entry.size)):
        raise SourceChanged(f"{entry.path!r} has {match[3]} bytes now, it had {entry.size} when it was listed")
    return int(match[2]) + 1


def check_whole(headers: Mapping[str, str], url: str, entry: Entry) -> None:
    """Raise unless the answer, which holds a whole file, holds this one, as it is."""
    _check_encoding(headers, url, entry)
    length = headers.get("Content-Length", "")
    if length and length != str(entry.size):
        raise SourceChanged(f"{entry.path!r} has {length} bytes now, it had {entry.size} when it was listed")


def _check_encoding(headers: Mapping[str, str], url: str, entry: Entry) -> None:
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OriginUnavailable(f"{shown_site(url)}: it sends {entry.path!r} compressed, which was not asked for; check the proxies on the way")
