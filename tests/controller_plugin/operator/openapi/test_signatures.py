"""Signatures as they are sent by hand: what is missing or altered is refused, whoever sends it, and nonces
are bounded."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from urllib.parse import quote

import pytest

from controller_plugin.operator.openapi.calls import ApiCall
from controller_plugin.operator.openapi.nonces import MemoryNonceStore
from controller_plugin.operator.openapi.refusals import ApiRefusal
from controller_plugin.operator.openapi.signatures import WINDOW_SECONDS, SignatureVerifier

NOW, TIME, KEY, SECRET = 1_700_000_000.0, "2023-11-14T22:13:20Z", "id", "hush"
COMMON = {
    "AccessKeyId": KEY,
    "SignatureMethod": "HMAC-SHA1",
    "SignatureVersion": "1.0",
    "SignatureNonce": "n",
    "Timestamp": TIME,
}
QUERY = {**COMMON, "Action": "DescribeDataCaches", "Bucket": "a b*~é"}
EMPTY = hashlib.sha256(b"").hexdigest()
HEADERS = {
    "host": "h",
    "x-acs-action": "DescribeDataCaches",
    "x-acs-date": TIME,
    "x-acs-signature-nonce": "n",
    "x-acs-content-sha256": EMPTY,
}


def encoded(text: str) -> str:
    return quote(text, safe="-_.~")


def rpc(query: dict[str, str], form: dict[str, str] | None = None, method: str = "GET") -> ApiCall:
    """A call signed as the specification says."""
    signed = sorted({**query, **(form or {})}.items())
    text = f"{method}&%2F&" + encoded("&".join(f"{encoded(key)}={encoded(value)}" for key, value in signed))
    signature = base64.b64encode(hmac.digest(f"{SECRET}&".encode(), text.encode(), "sha1")).decode()
    return ApiCall(method, "/", [*query.items(), ("Signature", signature)], list((form or {}).items()))


def v3(headers: dict[str, str], query: dict[str, str], body: bytes = b"") -> ApiCall:
    """The same, by the third version."""
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        (
            "POST",
            "/",
            "&".join(f"{encoded(key)}={encoded(value)}" for key, value in sorted(query.items())),
            "".join(f"{name}:{headers[name]}\n" for name in sorted(headers)),
            names,
            headers.get("x-acs-content-sha256", EMPTY),
        )
    )
    text = f"ACS3-HMAC-SHA256\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(SECRET.encode(), text.encode(), "sha256").hex()
    authorization = f"ACS3-HMAC-SHA256 Credential={KEY},SignedHeaders={names},Signature={signature}"
    return ApiCall("POST", "/", list(query.items()), (), {**headers, "authorization": authorization}, body)


def check(call: ApiCall, now: float = NOW) -> str:
    return SignatureVerifier({KEY: SECRET}.get).verify(call, now)


def code(call: ApiCall, now: float = NOW, by: Callable[[ApiCall, float], str] | None = None) -> str:
    with pytest.raises(ApiRefusal) as caught:
        (by or check)(call, now)
    assert SECRET not in caught.value.message
    return caught.value.code


def test_both_kinds_of_signature_say_who_calls() -> None:
    assert (
        check(rpc(QUERY))
        == check(rpc(COMMON, {"Action": "CreateDataCache"}, "POST"))
        == check(v3(HEADERS, {"Bucket": "a b*~é"}))
        == KEY
    )


@pytest.mark.parametrize("name", sorted(COMMON))
def test_what_has_to_be_signed_is_named_where_it_is_missing(name: str) -> None:
    assert code(rpc({key: value for key, value in QUERY.items() if key != name})) == "MissingParameter"


@pytest.mark.parametrize("name", ["x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"])
def test_so_is_a_header(name: str) -> None:
    assert code(v3({key: value for key, value in HEADERS.items() if key != name}, {})) == "MissingParameter"


def test_whatever_is_altered_does_not_match() -> None:
    whole = rpc(QUERY)
    assert (
        code(ApiCall("POST", "/", whole.query))
        == code(ApiCall("GET", "/", [*whole.query, ("More", "x")]))
        == "SignatureDoesNotMatch"
    )
    assert code(ApiCall("GET", "/", whole.query, [("Bucket", "other")])) == "SignatureDoesNotMatch"
    third = v3(HEADERS, {"a": "b"})
    assert (
        code(ApiCall("POST", "/", [("a", "c")], (), third.headers))
        == code(ApiCall("GET", "/", third.query, (), third.headers))
        == "SignatureDoesNotMatch"
    )
    assert code(ApiCall("POST", "/", third.query, (), third.headers, b"body")) == "SignatureDoesNotMatch"
    assert (
        code(ApiCall("POST", "/", third.query, (), {**third.headers, "x-acs-action": "DeleteDataCache"}))
        == "SignatureDoesNotMatch"
    )


def test_an_action_that_is_not_signed_is_no_action() -> None:
    unsigned = v3({key: value for key, value in HEADERS.items() if key != "x-acs-action"}, {})
    assert (
        code(ApiCall("POST", "/", (), (), {**unsigned.headers, "x-acs-action": "DeleteDataCache"}))
        == "IncompleteSignature"
    )


def test_other_schemes_are_refused_by_name() -> None:
    assert code(rpc({**QUERY, "SignatureMethod": "HMAC-MD5"})) == "InvalidSignatureMethod"
    assert code(ApiCall("POST", "/", (), (), {"authorization": "Basic x"})) == "IncompleteSignature"


def test_time_is_a_window_in_both_directions() -> None:
    assert check(rpc(QUERY), NOW + WINDOW_SECONDS) == check(rpc(QUERY), NOW - WINDOW_SECONDS) == KEY
    assert (
        code(rpc(QUERY), NOW + WINDOW_SECONDS + 1)
        == code(rpc(QUERY), NOW - WINDOW_SECONDS - 1)
        == "InvalidTimeStamp.Expired"
    )


def test_a_nonce_is_of_one_key() -> None:
    both = SignatureVerifier({KEY: SECRET, "other": SECRET}.get).verify
    assert both(rpc(QUERY), NOW) == KEY
    assert both(rpc({**QUERY, "AccessKeyId": "other"}), NOW) == "other"
    assert code(rpc(QUERY), NOW, both) == "SignatureNonceUsed"


def test_a_call_that_changes_something_counts_once_for_all_replicas_and_one_that_asks_for_each() -> None:
    kept = MemoryNonceStore(WINDOW_SECONDS)
    one, other = (SignatureVerifier({KEY: SECRET}.get, kept).verify for _ in range(2))
    deletes = {**QUERY, "Action": "DeleteDataCache"}
    assert one(rpc(deletes), NOW) == KEY
    assert code(rpc(deletes), NOW, other) == "SignatureNonceUsed"
    assert (
        one(rpc({**QUERY, "SignatureNonce": "m"}), NOW)
        == other(rpc({**QUERY, "SignatureNonce": "m"}), NOW)
        == KEY
    )
