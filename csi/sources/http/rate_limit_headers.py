"""Rate limits of an origin, from its RateLimit headers.

Three spellings are in use: `RateLimit: "default";r=50;t=30` (draft-ietf-httpapi-ratelimit-headers since 08,
Hugging Face), `RateLimit: limit=100, remaining=50, reset=30` (until 07), and `RateLimit-Remaining` with
`RateLimit-Reset`, both with or without `X-`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from csi.errors import OriginThrottled
from csi.sources.http.sites import format_site, parse_site
from csi.values import parse_decimal

_ITEM = re.compile(r";\s*([rt])\s*=\s*(\d+)")
_LEGACY_ITEM = re.compile(r"\b(remaining|reset)\s*=\s*(\d+)")
_REMAINING_HEADERS = ("RateLimit", "RateLimit-Remaining", "X-RateLimit-Remaining")
# X-RateLimit-Reset is a Unix time on some origins, seconds from now on others; no window is 30 years long.
_MIN_EPOCH_SECONDS = 1_000_000_000


class RateLimitWindow(NamedTuple):
    """`remaining` requests until the window is renewed in `reset_seconds`."""

    remaining: int
    reset_seconds: float


def parse_rate_limits(headers: Mapping[str, str]) -> list[RateLimitWindow]:
    """Parse all windows in the headers; unreadable ones are skipped."""
    if not any(map(headers.get, _REMAINING_HEADERS)):
        return []
    value = headers.get("RateLimit", "")
    windows = [dict(_ITEM.findall(item)) for item in value.split(",")]
    if named := dict(_LEGACY_ITEM.findall(value)):
        windows.append({"r": named.get("remaining", ""), "t": named.get("reset", "")})
    windows += [
        {
            "r": headers.get(f"{prefix}RateLimit-Remaining", ""),
            "t": headers.get(f"{prefix}RateLimit-Reset", ""),
        }
        for prefix in ("", "X-")
    ]
    numbers = ((parse_decimal(window.get("r")), parse_decimal(window.get("t"))) for window in windows)
    return [
        RateLimitWindow(remaining, _parse_reset(reset))
        for remaining, reset in numbers
        if remaining is not None and reset is not None
    ]


def seconds_until_reset(headers: Mapping[str, str]) -> float:
    """Return the seconds until every exhausted window is renewed, 0 if none is exhausted."""
    return max(
        (window.reset_seconds for window in parse_rate_limits(headers) if window.remaining == 0), default=0.0
    )


class RateLimitTracker:
    """Sites that reported an exhausted rate limit for one credential, shared by all readers of a source."""

    def __init__(self) -> None:
        self._blocked_until: dict[tuple[str, str, int], float] = {}
        self._lock = threading.Lock()

    def check(self, url: str) -> None:
        """Raise OriginThrottled while the site of `url` allows no further request."""
        # Without the lock: this runs for every file, and sites are almost never blocked.
        if not self._blocked_until:
            return
        with self._lock:
            remaining = self._blocked_until.get(parse_site(url), 0.0) - time.monotonic()
        if remaining > 0:
            raise OriginThrottled(
                f"{format_site(url)}: its rate limit allows no further request for {remaining:.0f} s",
                remaining,
            )

    def update(self, url: str, headers: Mapping[str, str]) -> None:
        """Record the rate limits in the headers of a response from `url`."""
        wait = seconds_until_reset(headers)
        if wait:
            with self._lock:
                self._blocked_until[parse_site(url)] = time.monotonic() + wait


def _parse_reset(value: int) -> float:
    return max(0.0, value - time.time()) if value >= _MIN_EPOCH_SECONDS else float(value)
