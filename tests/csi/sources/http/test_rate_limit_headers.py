"""What an origin says it still allows, in every spelling in use."""

from __future__ import annotations

import time

import pytest

from csi.errors import OriginThrottled
from csi.sources.http.rate_limit_headers import RateLimitTracker, parse_rate_limits, seconds_until_reset
from csi.sources.http.response_checks import transient_error


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"RateLimit": '"resolvers";r=50;t=30'}, [(50, 30)]),
        ({"RateLimit": '"api";r=0;t=7, "day"; r=3; t=100'}, [(0, 7), (3, 100)]),
        ({"RateLimit": "limit=100, remaining=0, reset=30"}, [(0, 30)]),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "12"}, [(0, 12)]),
        ({"X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "12"}, [(4, 12)]),
        ({"RateLimit": '"api";r=many;t=30', "X-RateLimit-Reset": "12", "RateLimit-Remaining": "\u00b2"}, []),
        ({"RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, []),
        (
            {
                "RateLimit": f'"api";r=0;t={"9" * 5000}',
                "RateLimit-Remaining": "9" * 5000,
                "RateLimit-Reset": "1",
            },
            [],
        ),
        ({}, []),
    ],
)
def test_every_spelling_is_read(headers: dict[str, str], expected: list[tuple[int, float]]) -> None:
    assert parse_rate_limits(headers) == expected


def test_a_reset_may_be_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    (one,) = parse_rate_limits({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "2000000100"})
    assert one.reset_seconds == 100


def test_the_longest_of_what_is_used_up_counts() -> None:
    assert seconds_until_reset({"RateLimit": '"a";r=0;t=7, "b";r=0;t=9, "c";r=1;t=100'}) == 9
    assert seconds_until_reset({"RateLimit": '"a";r=1;t=7'}) == 0


@pytest.mark.parametrize(("more", "seconds"), [({}, 31), ({"Retry-After": "5"}, 5)])
def test_a_plea_for_patience_lasts_until_the_renewal_unless_it_says_otherwise(
    more: dict[str, str], seconds: float
) -> None:
    fault = transient_error(429, {"RateLimit": '"resolvers";r=0;t=31', **more}, "here")
    assert isinstance(fault, OriginThrottled)
    assert fault.retry_after == seconds


def test_a_site_whose_allowance_is_used_up_is_not_asked_until_it_is_renewed() -> None:
    allowed = RateLimitTracker()
    allowed.update("http://one.invalid/a?secret", {"RateLimit": '"api";r=0;t=30'})
    allowed.update("http://two.invalid/a", {"RateLimit": '"api";r=1;t=30'})
    with pytest.raises(OriginThrottled, match="one.invalid") as error:
        allowed.check("http://one.invalid/b?secret")
    assert 29 < error.value.retry_after <= 30
    assert "secret" not in str(error.value)
    allowed.check("http://two.invalid/b")
    allowed.check("https://one.invalid/b")
