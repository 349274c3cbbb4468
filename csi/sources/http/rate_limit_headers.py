"""How much an origin still allows, by its RateLimit headers, and when it allows more.

Three spellings are in use: `RateLimit: "default";r=50;t=30` (draft-ietf-httpapi-ratelimit-headers since 08, Hugging Face),
`RateLimit: limit=100, remaining=50, reset=30` (until 07) and `RateLimit-Remaining` with `RateLimit-Reset`, `X-` before them or not.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from csi.errors import OriginThrottled
from csi.sources.http.connections import format_site, parse_site
from csi.values import parse_decimal

_ITEM = re.compile(r";\s*([rt])\s*=\s*(\d+)")
_LEGACY_ITEM = re.compile(r"\b(remaining|reset)\s*=\s*(\d+)")
_REMAINING_HEADERS = ("RateLimit", "RateLimit-Remaining", "X-RateLimit-Remaining")
# X-RateLimit-Reset is a time of day with some origins, seconds with others.
_MIN_EPOCH_SECONDS = 1_000_000_000


class RateLimitWindow(NamedTuple):
    """`remaining` requests until it is renewed in `reset_seconds`."""

    remaining: int
    reset_seconds: float


def parse_rate_limits(headers: Mapping[str, str]) -> list[RateLimitWindow]:
    """Every allowance that the headers tell of; what cannot be read is left out."""
    if not any(map(headers.get, _REMAINING_HEADERS)):
        return []
    value = headers.get("RateLimit", "")
    windows = [dict(_ITEM.findall(item)) for item in value.split(",")]
    if named := dict(_LEGACY_ITEM.findall(value)):
        windows.append({"r": named.get("remaining", ""), "t": named.get("reset", "")})
    windows += [
        {"r": headers.get(f"{x}RateLimit-Remaining", ""), "t": headers.get(f"{x}RateLimit-Reset", "")}
        for x in ("", "X-")
    ]
    numbers = ((parse_decimal(one.get("r")), parse_decimal(one.get("t"))) for one in windows)
    return [
        RateLimitWindow(remaining, _parse_reset(reset))
        for remaining, reset in numbers
        if remaining is not None and reset is not None
    ]


def seconds_until_reset(headers: Mapping[str, str]) -> float:
    """Seconds until what is used up is renewed, 0 where nothing is said to be used up."""
    return max((one.reset_seconds for one in parse_rate_limits(headers) if one.remaining == 0), default=0.0)


class RateLimitTracker:
    """What each site said that it allows one credential; for all readers of a source."""

    def __init__(self) -> None:
        self._blocked_until: dict[tuple[str, str, int], float] = {}
        self._lock = threading.Lock()

    def check(self, url: str) -> None:
        """Raises OriginThrottled while the site of `url` allows no further request: it is not asked in vain."""
        if not self._blocked_until:
            return
        with self._lock:
            remaining = self._blocked_until.get(parse_site(url), 0.0) - time.monotonic()
        if remaining > 0:
            raise OriginThrottled(
                f"{format_site(url)} said that it allows no further request for {remaining:.0f} s", remaining
            )

    def update(self, url: str, headers: Mapping[str, str]) -> None:
        """Take in what an answer of `url` said."""
        wait = seconds_until_reset(headers)
        if wait:
            with self._lock:
                self._blocked_until[parse_site(url)] = time.monotonic() + wait


def _parse_reset(value: int) -> float:
    return max(0.0, value - time.time()) if value >= _MIN_EPOCH_SECONDS else float(value)
