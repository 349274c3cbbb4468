"""Authentication of calls by both signatures of Alibaba Cloud's OpenAPI.

Signatures are checked against the operator's access keys. Sources: Alibaba Cloud, "RPC mechanism" (HMAC-SHA1,
signature version 1.0) and "V3 request body and signature" (ACS3-HMAC-SHA256).
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
# Alibaba Cloud's limit for the age of a request.
WINDOW_SECONDS = 900.0
# Replays of a read do no harm; the nonces of all other calls are shared by the replicas.
_READ_ONLY_ACTION = "DescribeDataCaches"
# The older SDK looks for the string to sign after the last colon, and fails by itself if there is none. The
# string is
# not sent, because it may hold a credential.
_MISMATCH = (
    "The signature is not that of the request with this AccessKey; "
    "check the AccessKey secret. The string to sign is:not shown"
)


class SignatureVerifier:
    """Verifier of calls' signatures and nonces.

    `find_secret` returns the secret of an access key's id, None for an unknown id. `shared_nonces` stores the
    nonces of calls that change something; this process remembers those of all calls by itself.
    """

    def __init__(
        self, find_secret: Callable[[str], str | None], shared_nonces: NonceStore | None = None
    ) -> None:
        self._find_secret, self._shared_nonces, self._nonces = (
            find_secret,
            shared_nonces,
            MemoryNonceStore(2 * WINDOW_SECONDS),
        )

    def verify(self, call: ApiCall, now: float) -> str:
        """Verify a call at `now` (seconds since 1970) and return the id of its access key.

        Raises ApiRefusal, and as `shared_nonces`.
        """
        is_v3 = "authorization" in call.headers
        key_id, nonce, timestamp = self._verify_v3(call) if is_v3 else self._verify_rpc(call)
        if abs(_parse_time(timestamp) - now) > WINDOW_SECONDS:
            raise ApiRefusal(
                400,
                "InvalidTimeStamp.Expired",
                "The request was signed more than 15 minutes ago or in the future; check the clock.",
            )
        # After the signature is verified, or strangers could use up others' nonces.
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
                "This SignatureNonce was used already; sign each request with a new one.",
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
                "Sign requests with HMAC-SHA1, version 1.0, or with ACS3-HMAC-SHA256.",
            )
        pairs = [pair for pair in (*call.query, *call.form) if pair[0] != "Signature"]
        # "RPC mechanism": method, path and sorted parameters, each percent-encoded, joined by "&".
        text = f"{call.method}&{_percent_encode('/')}&{_percent_encode(_encode_pairs(pairs))}"
        digest = hmac.new(
            f"{self._get_secret(parameters['AccessKeyId'])}&".encode(), text.encode(), hashlib.sha1
        ).digest()
        _require_equal(base64.b64encode(digest).decode(), parameters["Signature"])
        return parameters["AccessKeyId"], parameters["SignatureNonce"], parameters["Timestamp"]

    def _verify_v3(self, call: ApiCall) -> tuple[str, str, str]:
        match = _AUTHORIZATION.fullmatch(call.headers["authorization"])
        if not match:
            raise ApiRefusal(
                400,
                "IncompleteSignature",
                f"The header Authorization is not {_V3} Credential=..., SignedHeaders=..., Signature=...; "
                "sign the request so.",
            )
        key_id, signed, signature = match.groups()
        for name in ("x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"):
            if name not in call.headers or name not in signed.split(";"):
                raise missing_parameter(name)
        if call.headers["x-acs-content-sha256"] != hashlib.sha256(call.body).hexdigest():
            raise ApiRefusal(
                400,
                "SignatureDoesNotMatch",
                "The header x-acs-content-sha256 is not the SHA-256 of the body; send the right one.",
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
                "The AccessKeyId is not one of the operator's access keys; use one of those.",
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


def _require_equal(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected.encode(), given.encode()):
        raise ApiRefusal(400, "SignatureDoesNotMatch", _MISMATCH)


def _parse_time(text: str) -> float:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise ApiRefusal(400, "InvalidTimeStamp.Format", f"Write the time as {_TIME}, in UTC.") from None
