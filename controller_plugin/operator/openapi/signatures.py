"""Who calls: the two signatures of Alibaba Cloud's OpenAPI, checked against the operator's access keys.

Sources: Alibaba Cloud, "RPC mechanism" (HMAC-SHA1, signature version 1.0) and "V3 request body and signature" (ACS3-HMAC-SHA256).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from urllib.parse import quote

from controller_plugin.operator.openapi.calls import ApiCall
from controller_plugin.operator.openapi.nonces import MemoryNonceStore, NonceStore
from controller_plugin.operator.openapi.refusals import ApiRefusal, missing_parameter

_V3 = "ACS3-HMAC-SHA256"
_AUTHORIZATION = re.compile(
    rf"{_V3} Credential=([^,\s]+), ?SignedHeaders=([^,\s]+), ?Signature=([0-9a-f]+)", re.ASCII
)
_TIME = "%Y-%m-%dT%H:%M:%SZ"
WINDOW_SECONDS = 900.0
# A replay of what only asks does no harm; of all else every replica is to know.
_READ_ONLY_ACTION = "DescribeDataCaches"
# The older SDK looks for the string to sign behind the colon, and fails by itself where there is none; it may hold a credential.
_MISMATCH = "The signature is not the one that the request and this AccessKey make; check the AccessKey secret. The string to sign is:not shown"


class SignatureVerifier:
    """Checks calls. `secret_of` gives the secret of an access key's id, None for one that nobody has; `kept` has the nonces of calls that change
    something, beside those that this process remembers of all."""

    def __init__(
        self, find_secret: Callable[[str], str | None], shared_nonces: NonceStore | None = None
    ) -> None:
        self._find_secret, self._shared_nonces, self._nonces = (
            find_secret,
            shared_nonces,
            MemoryNonceStore(2 * WINDOW_SECONDS),
        )

    def verify(self, call: ApiCall, now: float) -> str:
        """The access key's id of whoever signed the call, at `now` (seconds since 1970). Raises Refusal, and as `kept`."""
        v3 = "authorization" in call.headers
        key_id, nonce, when = self._verify_v3(call) if v3 else self._verify_rpc(call)
        if abs(_parse_time(when) - now) > WINDOW_SECONDS:
            raise ApiRefusal(
                400,
                "InvalidTimeStamp.Expired",
                "The request was signed more than 15 minutes ago, or will be; check the clock.",
            )
        # After the signature: a stranger must use up nobody's nonce.
        mark = hashlib.sha256(f"{key_id}\0{nonce}".encode()).hexdigest()[:40]
        is_new = self._nonces.use(mark, now)
        if not is_new or (
            self._shared_nonces
            and call.action != _READ_ONLY_ACTION
            and not self._shared_nonces.use(mark, now)
        ):
            raise ApiRefusal(
                400,
                "SignatureNonceUsed",
                "This SignatureNonce was used already; sign each request with one of its own.",
            )
        return key_id

    def _verify_rpc(self, call: ApiCall) -> tuple[str, str, str]:
        parameters = call.parameters
        names = (
            "AccessKeyId",
            "Signature",
            "SignatureMethod",
            "SignatureVersion",
            "SignatureNonce",
            "Timestamp",
        )
        for name in names:
            if not parameters.get(name):
                raise missing_parameter(name)
        if (parameters["SignatureMethod"].upper(), parameters["SignatureVersion"]) != ("HMAC-SHA1", "1.0"):
            raise ApiRefusal(
                400,
                "InvalidSignatureMethod",
                "Requests are signed with HMAC-SHA1, version 1.0, or with ACS3-HMAC-SHA256.",
            )
        pairs = [pair for pair in (*call.query, *call.form) if pair[0] != "Signature"]
        text = f"{call.method}&{_percent_encode('/')}&{_percent_encode(_encode_pairs(pairs))}"
        digest = hmac.new(
            f"{self._get_secret(parameters['AccessKeyId'])}&".encode(), text.encode(), hashlib.sha1
        ).digest()
        _require_equal(base64.b64encode(digest).decode(), parameters["Signature"])
        return parameters["AccessKeyId"], parameters["SignatureNonce"], parameters["Timestamp"]

    def _verify_v3(self, call: ApiCall) -> tuple[str, str, str]:
        found = _AUTHORIZATION.fullmatch(call.headers["authorization"])
        if not found:
            raise ApiRefusal(
                400,
                "IncompleteSignature",
                f"The header Authorization is not {_V3} Credential=..., SignedHeaders=..., Signature=...",
            )
        key_id, signed, signature = found.groups()
        for name in ("x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"):
            if name not in call.headers or name not in signed.split(";"):
                raise missing_parameter(name)
        if call.headers["x-acs-content-sha256"] != hashlib.sha256(call.body).hexdigest():
            raise ApiRefusal(
                400,
                "SignatureDoesNotMatch",
                "The header x-acs-content-sha256 is not the SHA-256 of the body.",
            )
        if "x-acs-action" in call.headers and "x-acs-action" not in signed.split(";"):
            raise ApiRefusal(400, "IncompleteSignature", "The header x-acs-action is not signed.")
        text = f"{_V3}\n{hashlib.sha256(_canonical_request(call, signed).encode()).hexdigest()}"
        _require_equal(
            hmac.new(self._get_secret(key_id).encode(), text.encode(), hashlib.sha256).hexdigest(), signature
        )
        return key_id, call.headers["x-acs-signature-nonce"], call.headers["x-acs-date"]

    def _get_secret(self, key_id: str) -> str:
        secret = self._find_secret(key_id)
        if not secret:
            raise ApiRefusal(
                404,
                "InvalidAccessKeyId.NotFound",
                "The AccessKeyId is not one of the operator's; see its access keys.",
            )
        return secret


def _canonical_request(call: ApiCall, signed: str) -> str:
    headers = "".join(f"{name}:{call.headers.get(name, '').strip()}\n" for name in signed.split(";"))
    path = quote(call.path, safe="/-_.~")
    return "\n".join(
        (call.method, path, _encode_pairs(call.query), headers, signed, call.headers["x-acs-content-sha256"])
    )


def _encode_pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "&".join(f"{_percent_encode(name)}={_percent_encode(value)}" for name, value in sorted(pairs))


def _percent_encode(text: str) -> str:
    return quote(text, safe="-_.~")


def _require_equal(right: str, given: str) -> None:
    if not hmac.compare_digest(right.encode(), given.encode()):
        raise ApiRefusal(400, "SignatureDoesNotMatch", _MISMATCH)


def _parse_time(text: str) -> float:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise ApiRefusal(400, "InvalidTimeStamp.Format", f"A time is written as {_TIME}, in UTC.") from None
