"""Checks of HTTP responses from origins, and the translation of error statuses into `csi.errors`."""

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
from csi.sources.http.rate_limit_headers import seconds_until_reset
from csi.sources.http.sites import format_site
from csi.values import MAX_DIGITS

_CONTENT_RANGE = re.compile(
    rf"bytes (\d{{1,{MAX_DIGITS}}})-(\d{{1,{MAX_DIGITS}}})/(\d{{1,{MAX_DIGITS}}}|\*)$"
)


def status_error(status: int, headers: Mapping[str, str], url: str, entry: Entry) -> DataCacheError:
    """Translate an error status into an error of `csi.errors`."""
    prefix = f"{format_site(url)} answered {status} for {entry.path!r}"
    if status == 401:
        return Unauthenticated(f"{prefix}: it requires a credential, or refuses the given one")
    if status == 403:
        return PermissionDenied(f"{prefix}: this credential may not read it")
    if status in (404, 410):
        return SourceNotFound(f"{prefix}: the file does not exist any more")
    if status == 412:
        return source_changed_error(entry, url)
    if status == 416:
        return SourceChanged(
            f"{prefix}: the file is shorter than it was when it was listed ({entry.size} bytes)"
        )
    return transient_error(status, headers, prefix)


def source_changed_error(entry: Entry, url: str) -> SourceChanged:
    """Create the error for a file whose ETag, version or time differs from the listed one."""
    host = format_site(url)
    return SourceChanged(
        f"{entry.path!r} on {host} has changed since it was listed; "
        "a new or updated cache picks the change up"
    )


def transient_error(status: int, headers: Mapping[str, str], prefix: str) -> OriginUnavailable:
    """Return OriginThrottled for 429 and 503, else OriginUnavailable; `prefix` begins the message."""
    if status in (429, 503):
        wait = parse_retry_after(headers) or seconds_until_reset(headers)
        hint = f" (retry after {wait:.0f} s)" if wait else ""
        return OriginThrottled(f"{prefix}: it is rate limiting requests{hint}", wait)
    return OriginUnavailable(f"{prefix}: unexpected response; a retry may help")


def parse_retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of a Retry-After header, 0 if missing or invalid.

    RFC 9110, 10.2.3: its value is in seconds, or a date.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def check_range_end(headers: Mapping[str, str], url: str, entry: Entry, offset: int, end: int) -> int:
    """Return the end of the received range.

    Fewer bytes than requested are fine. Raises OriginUnavailable for another range, SourceChanged for another
    file size.
    """
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    _check_encoding(headers, url, entry)
    if match is None or int(match[1]) != offset or not offset < int(match[2]) + 1 <= end:
        raise OriginUnavailable(
            f"{format_site(url)}: it sent another range of {entry.path!r} "
            f"than the requested one (bytes {offset} to {end - 1})"
        )
    # RFC 9110, 14.4: "*" stands for an unknown total.
    if match[3] not in ("*", str(entry.size)):
        raise SourceChanged(
            f"{entry.path!r} has {match[3]} bytes now, it had {entry.size} when it was listed"
        )
    return int(match[2]) + 1


def check_full_response(headers: Mapping[str, str], url: str, entry: Entry) -> None:
    """Raise unless a response without a range has this file's size and no content encoding."""
    _check_encoding(headers, url, entry)
    length = headers.get("Content-Length", "")
    if length and length != str(entry.size):
        raise SourceChanged(f"{entry.path!r} has {length} bytes now, it had {entry.size} when it was listed")


def _check_encoding(headers: Mapping[str, str], url: str, entry: Entry) -> None:
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OriginUnavailable(
            f"{format_site(url)}: it sends {entry.path!r} compressed, which was not requested; "
            "check the proxies on the way"
        )
