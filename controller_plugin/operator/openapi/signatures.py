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

from controller_plugin.operator.openapi.calls import Call
from controller_plugin.operator.openapi.nonces import MemoryNonces, Nonces
from controller_plugin.operator.openapi.refusals import Refusal, missing

_V3 = "ACS3-HMAC-SHA256"
_AUTHORIZATION = re.compile(rf"{_V3} Credential=([^,\s]+), ?SignedHeaders=([^,\s]+), ?Signature=([0-9a-f]+)", re.ASCII)
_TIME = "%Y-%m-%dT%H:%M:%SZ"
WINDOW_SECONDS = 900.0
# A replay of what only asks does no harm; of all else every replica is to know.
_ASKING = "DescribeDataCaches"
# The older SDK looks for the string to sign behind the colon, and fails by itself where there is none; it may hold a credential.
_MISMATCH = "The signature is not the one that the request and this AccessKey make; check the AccessKey secret. The string to sign is:not shown"


class Signatures:
    """Checks calls. `secret_of` gives the secret of an access key's id, None for one that nobody has; `kept` has the nonces of calls that change
    something, beside those that this process remembers of all."""

    def __init__(self, secret_of: Callable[[str], str | None], kept: Nonces | None = None) -> None:
        self._secret_of, self._kept, self._nonces = secret_of, kept, MemoryNonces(2 * WINDOW_SECONDS)

    def check(self, call: Call, now: float) -> str:
        """The access key's id of whoever signed the call, at `now` (seconds since 1970). Raises Refusal, and as `kept`."""
        v3 = "authorization" in call.headers
        key_id, nonce, when = self._checked_v3(call) if v3 else self._checked_rpc(call)
        if abs(_seconds(when) - now) > WINDOW_SECONDS:
            raise Refusal(400, "InvalidTimeStamp.Expired", "The request was signed more than 15 minutes ago, or will be; check the clock.")
        # After the signature: a stranger must use up nobody's nonce.
        mark = hashlib.sha256(f"{key_id}\0{nonce}".encode()).hexdigest()[:40]
        is_new = self._nonces.use(mark, now)
        if not is_new or (self._kept and call.action != _ASKING and not self._kept.use(mark, now)):
            raise Refusal(400, "SignatureNonceUsed", "This SignatureNonce was used already; sign each request with one of its own.")
        return key_id

    def _checked_rpc(self, call: Call) -> tuple[str, str, str]:
        given = call.parameters
        names = ("AccessKeyId", "Signature", "SignatureMethod", "SignatureVersion", "SignatureNonce", "Timestamp")
        for name in names:
            if not given.get(name):
                raise missing(name)
        if (given["SignatureMethod"].upper(), given["SignatureVersion"]) != ("HMAC-SHA1", "1.0"):
            raise Refusal(400, "InvalidSignatureMethod", "Requests are signed with HMAC-SHA1, version 1.0, or with ACS3-HMAC-SHA256.")
        pairs = [pair for pair in (*call.query, *call.form) if pair[0] != "Signature"]
        text = f"{call.method}&{_encoded('/')}&{_encoded(_joined(pairs))}"
        digest = hmac.new(f"{self._secret(given['AccessKeyId'])}&".encode(), text.encode(), hashlib.sha1).digest()
        _compare(base64.b64encode(digest).decode(), given["Signature"])
        return given["AccessKeyId"], given["SignatureNonce"], given["Timestamp"]

    def _checked_v3(self, call: Call) -> tuple[str, str, str]:
        found = _AUTHORIZATION.fullmatch(call.headers["authorization"])
        if not found:
            raise Refusal(400, "IncompleteSignature", f"The header Authorization is not {_V3} Credential=..., SignedHeaders=..., Signature=...")
        key_id, signed, signature = found.groups()
        for name in ("x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"):
            if name not in call.headers or name not in signed.split(";"):
                raise missing(name)
        if call.headers["x-acs-content-sha256"] != hashlib.sha256(call.body).hexdigest():
            raise Refusal(400, "SignatureDoesNotMatch", "The header x-acs-content-sha256 is not the SHA-256 of the body.")
        if "x-acs-action" in call.headers and "x-acs-action" not in signed.split(";"):
            raise Refusal(400, "IncompleteSignature", "The header x-acs-action is not signed.")
        text = f"{_V3}\n{hashlib.sha256(_canonical(call, signed).encode()).hexdigest()}"
        _compare(hmac.new(self._secret(key_id).encode(), text.encode(), hashlib.sha256).hexdigest(), signature)
        return key_id, call.headers["x-acs-signature-nonce"], call.headers["x-acs-date"]

    def _secret(self, key_id: str) -> str:
        secret = self._secret_of(key_id)
        if not secret:
            raise Refusal(404, "InvalidAccessKeyId.NotFound", "The AccessKeyId is not one of the operator's; see its access keys.")
        return secret


def _canonical(call: Call, signed: str) -> str:
    headers = "".join(f"{name}:{call.headers.get(name, '').strip()}\n" for name in signed.split(";"))
    path = quote(call.path, safe="/-_.~")
    return "\n".join((call.method, path, _joined(call.query), headers, signed, call.headers["x-acs-content-sha256"]))


def _joined(pairs: Iterable[tuple[str, str]]) -> str:
    return "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in sorted(pairs))


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")


def _compare(right: str, given: str) -> None:
    if not hmac.compare_digest(right.encode(), given.encode()):
        raise Refusal(400, "SignatureDoesNotMatch", _MISMATCH)


def _seconds(text: str) -> float:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise Refusal(400, "InvalidTimeStamp.Format", f"A time is written as {_TIME}, in UTC.") from None
