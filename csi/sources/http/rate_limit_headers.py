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
from csi.sources.http.connections import shown_site, site
from csi.values import whole_number

_ITEM = re.compile(r";\s*([rt])\s*=\s*(\d+)")
_MEMBER = re.compile(r"\b(remaining|reset)\s*=\s*(\d+)")
_TELLING = ("RateLimit", "RateLimit-Remaining", "X-RateLimit-Remaining")
# X-RateLimit-Reset is a time of day with some origins, seconds with others.
_MOMENT = 1_000_000_000


class Allowance(NamedTuple):
    """`remaining` requests until it is renewed in `seconds`."""

    remaining: int
    seconds: float


def allowances(headers: Mapping[str, str]) -> list[Allowance]:
    """Every allowance that the headers tell of; what cannot be read is left out."""
    if not any(map(headers.get, _TELLING)):
        return []
    value = headers.get("RateLimit", "")
    found = [dict(_ITEM.findall(item)) for item in value.split(",")]
    if named := dict(_MEMBER.findall(value)):
        found.append({"r": named.get("remaining", ""), "t": named.get("reset", "")})
    found += [{"r": headers.get(f"{x}RateLimit-Remaining", ""), "t": headers.get(f"{x}RateLimit-Reset", "")} for x in ("", "X-")]
    numbers = ((whole_number(one.get("r")), whole_number(one.get("t"))) for one in found)
    return [Allowance(remaining, _seconds(reset)) for remaining, reset in numbers if remaining is not None and reset is not None]


def renewal(headers: Mapping[str, str]) -> float:
    """Seconds until what is used up is renewed, 0 where nothing is said to be used up."""
    return max((one.seconds for one in allowances(headers) if one.remaining == 0), default=0.0)


class Allowances:
    """What each site said that it allows one credential; for all readers of a source."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str, int], float] = {}
        self._guard = threading.Lock()

    def check(self, url: str) -> None:
        """Raises OriginThrottled while the site of `url` allows no further request: it is not asked in vain."""
        if not self._until:
            return
        with self._guard:
            left = self._until.get(site(url), 0.0) - time.monotonic()
        if left > 0:
            raise OriginThrottled(f"{shown_site(url)} said that it allows no further request for {left:.0f} s", left)

    def note(self, url: str, headers: Mapping[str, str]) -> None:
        """Take in what an answer of `url` said."""
        wait = renewal(headers)
        if wait:
            with self._guard:
                self._until[site(url)] = time.monotonic() + wait


def _seconds(value: int) -> float:
    return max(0.0, value - time.time()) if value >= _MOMENT else float(value)
