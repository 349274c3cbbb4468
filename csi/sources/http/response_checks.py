"""What the answers of origins over HTTP mean: whether they are what was asked for, and an error in words where they are not."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping

from csi.errors import (
    DataCacheError,
    OriginThrottled,
    OriginUnavailable,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
)
from csi.manifest.manifest import Entry
from csi.sources.http.connections import format_site
from csi.sources.http.rate_limit_headers import seconds_until_reset
from csi.values import MAX_DIGITS

_CONTENT_RANGE = re.compile(
    rf"bytes (\d{{1,{MAX_DIGITS}}})-(\d{{1,{MAX_DIGITS}}})/(\d{{1,{MAX_DIGITS}}}|\*)$"
)


def status_error(status: int, headers: Mapping[str, str], url: str, entry: Entry) -> DataCacheError:
    """An error status in the words of `csi.errors`."""
    prefix = f"{format_site(url)} answered {status} for {entry.path!r}"
    if status == 401:
        return Unauthenticated(f"{prefix}: it wants a credential, or refuses the one it was given")
    if status == 403:
        return PermissionDenied(f"{prefix}: this credential may not read it")
    if status in (404, 410):
        return SourceNotFound(f"{prefix}: it is not there any more")
    if status == 412:
        return source_changed_error(entry, url)
    if status == 416:
        return SourceChanged(
            f"{prefix}: the file is shorter than it was when it was listed ({entry.size} bytes)"
        )
    return transient_error(status, headers, prefix)


def source_changed_error(entry: Entry, url: str) -> SourceChanged:
    """The file is another one by what its origin says of it (an ETag, a version, a time)."""
    host = format_site(url)
    return SourceChanged(
        f"{entry.path!r} on {host} has changed since it was listed; a new or updated cache picks the change up"
    )


def transient_error(status: int, headers: Mapping[str, str], prefix: str) -> OriginUnavailable:
    """OriginThrottled for 429 and 503, OriginUnavailable for the rest; `prefix` begins the message."""
    if status in (429, 503):
        wait = parse_retry_after(headers) or seconds_until_reset(headers)
        return OriginThrottled(f"{prefix}: it asks for patience" + (f" ({wait:.0f} s)" if wait else ""), wait)
    return OriginUnavailable(f"{prefix}: an answer that cannot be used; trying again may help")


def parse_retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: seconds or a date), 0 where there is none or it cannot be read."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def check_range_end(headers: Mapping[str, str], url: str, entry: Entry, offset: int, end: int) -> int:
    """The end of the range that came; fewer bytes than asked for are fine, another place or another file is not."""
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    _check_encoding(headers, url, entry)
    if match is None or int(match[1]) != offset or not offset < int(match[2]) + 1 <= end:
        raise OriginUnavailable(
            f"{format_site(url)}: it sent another range of {entry.path!r} than was asked for (bytes {offset} to {end - 1})"
        )
    if match[3] not in ("*", str(entry.size)):
        raise SourceChanged(
            f"{entry.path!r} has {match[3]} bytes now, it had {entry.size} when it was listed"
        )
    return int(match[2]) + 1


def check_full_response(headers: Mapping[str, str], url: str, entry: Entry) -> None:
    """Raise unless the answer, which holds a whole file, holds this one, as it is."""
    _check_encoding(headers, url, entry)
    length = headers.get("Content-Length", "")
    if length and length != str(entry.size):
        raise SourceChanged(f"{entry.path!r} has {length} bytes now, it had {entry.size} when it was listed")


def _check_encoding(headers: Mapping[str, str], url: str, entry: Entry) -> None:
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OriginUnavailable(
            f"{format_site(url)}: it sends {entry.path!r} compressed, which was not asked for; check the proxies on the way"
        )
