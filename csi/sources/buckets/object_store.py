"""A bucket and the key that reads it: signed addresses, by obstore, and what the store's refusals mean. Asks nobody anything.

Nothing is taken from the environment: keys and endpoints there (AWS_...) are a person's, not a volume's.
"""

from __future__ import annotations

import datetime
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from csi.errors import DataCacheError, InvalidParameter, OriginUnavailable, PermissionDenied, SourceNotFound, Unauthenticated
from csi.parameters.dialects.buckets import ObjectSpec
from csi.sources.http.curl_fetch import SigningKey
from csi.sources.http.response_checks import passing_fault

if TYPE_CHECKING:
    from obstore.store import S3Config

SIGNED_SECONDS = 3600
_ENDING = datetime.timedelta(minutes=5)
_CONNECT, _RETRIES = datetime.timedelta(seconds=5), 2
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_BAD_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "InvalidSecurityToken")


@dataclass(frozen=True)
class AccessKey:
    """A credential of an object store; `expires` (aware) is when a temporary one ends, None for one that does not."""

    id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires: datetime.datetime | None = None


class ObjectStore:
    """One bucket folder; `credential` is asked for a key whenever the last one ends, None reads as anybody. Makes no request. Thread-safe."""

    def __init__(self, spec: ObjectSpec, credential: Callable[[], AccessKey] | None) -> None:
        self._spec, self._credential = spec, credential
        self._key: AccessKey | None = None
        self._signer: S3Store | None = None
        self._clients: dict[float, tuple[AccessKey, S3Store]] = {}
        self._guard = threading.Lock()

    def address(self, key: str) -> str:
        """Where an object's bytes are for SIGNED_SECONDS; for a bucket that is read as anybody, for ever."""
        if self._credential is None:
            return f"{self.listed_at.rstrip('/')}/{quote(key)}"
        with self._explained():
            return str(obstore.sign(self._current()[1], "GET", key, datetime.timedelta(seconds=SIGNED_SECONDS)))

    def client(self, seconds: float) -> S3Store:
        """obstore's own client of the bucket, for who writes to it; there is a credential. Each of its requests may take `seconds`."""
        key, _ = self._current()
        with self._guard, self._explained():
            made = self._clients.get(seconds)
            if made is None or made[0] is not key:
                made = self._clients[seconds] = (key, self._new_client(key, seconds))
            return made[1]

    def signing(self) -> tuple[SigningKey | None, dict[str, str]]:
        """With what requests to the bucket itself are signed, and the headers that go along; None and none as anybody."""
        if self._credential is None:
            return None, {}
        key = self._current()[0]
        headers = {"x-amz-security-token": key.token} if key.token else {}
        return SigningKey(key.id, key.secret, self._region), headers

    def _current(self) -> tuple[AccessKey, S3Store]:
        with self._guard:
            if self._key is None or self._signer is None or _ends(self._key):
                if self._credential is None:
                    raise InvalidParameter(f"{self._spec.shown} is written to with an access key; name the Secret or folder that holds it")
                self._key = self._checked(self._credential())
                with self._explained():
                    self._signer = self._new_client(self._key)
            return self._key, self._signer

    def _checked(self, key: AccessKey) -> AccessKey:
        if not all(text.isascii() and text.isprintable() for text in (key.id, key.secret, key.token)):
            raise InvalidParameter(f"the access key for {self._spec.shown} has a line end or another character that no access key has; write it anew")
        return key

    def _new_client(self, key: AccessKey, seconds: float = SIGNED_SECONDS) -> S3Store:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        config: S3Config = {"access_key_id": key.id, "secret_access_key": key.secret}
        if key.token:
            config["session_token"] = key.token
        return S3Store(
            self._spec.bucket,
            config=config,
            endpoint=self._spec.endpoint if self._spec.path_style else self.base,
            region=self._region,
            virtual_hosted_style_request=not self._spec.path_style,
            client_options={"allow_http": True, "connect_timeout": _CONNECT, "timeout": datetime.timedelta(seconds=seconds)},
            retry_config={"max_retries": _RETRIES, "retry_timeout": datetime.timedelta(seconds=_RETRIES * seconds)},
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of obstore as those of `csi.errors`; its own texts hold addresses."""
        try:
            yield
        except BaseError as error:
            raise InvalidParameter(f"{self._spec.shown}: no address in it can be signed; check bucket, path, endpoint and region") from error

    @property
    def _region(self) -> str:
        return self._spec.region or "us-east-1"

    @property
    def base(self) -> str:
        """The bucket's own host."""
        where = urlsplit(self._spec.endpoint)
        return f"{where.scheme}://{self._spec.bucket}.{where.netloc}"

    @property
    def listed_at(self) -> str:
        """The bucket's own URL."""
        return f"{self._spec.endpoint}/{self._spec.bucket}" if self._spec.path_style else f"{self.base}/"

    @property
    def prefix(self) -> str:
        """What the keys of the folder begin with: "" or a name that ends with '/'."""
        return self._spec.prefix + "/" if self._spec.prefix else ""

    @property
    def shown(self) -> str:
        """The folder as messages name it."""
        return self._spec.shown

    @property
    def host(self) -> str:
        """The endpoint's host, for messages."""
        return urlsplit(self._spec.endpoint).netloc

    def refusal(self, status: int, body: bytes = b"", headers: Mapping[str, str] = _NO_HEADERS) -> DataCacheError:
        """What an error answer of the store means, by its status and S3's error code where `body` has one."""
        what, where, found = self._spec.shown, self.host, _CODE.search(body)
        code = found[1].decode() if found else ""
        if code in _BAD_KEYS or status == 401:
            return Unauthenticated(f"{where} refuses the access key for {what} ({code or status}): it is wrong, revoked or expired; check the Secret")
        if status == 403 and self._credential is None:
            return Unauthenticated(f"{what} may not be read by anybody; name a Secret that holds an access key")
        if status == 403:
            return PermissionDenied(f"{where} does not let this access key read {what}; give it the rights to list the bucket and read its objects")
        if status == 404:
            return SourceNotFound(f"{what} does not exist; check bucket, path and the endpoint")
        if 300 <= status < 400:
            return OriginUnavailable(
                f"{where} does not serve {what} but sends elsewhere ({code or status}), where no access key is taken; "
                f"check endpoint and region, bucket and pathStyle{_other_region(headers)}"
            )
        if status == 400:
            return OriginUnavailable(f"{where} does not serve {what} ({code or status}); check endpoint, region, bucket and pathStyle")
        return passing_fault(status, headers, f"{where} answered {status} for {what}")


def _ends(key: AccessKey) -> bool:
    return key.expires is not None and key.expires - datetime.datetime.now(datetime.UTC) < _ENDING


def _other_region(headers: Mapping[str, str]) -> str:
    region = headers.get("x-amz-bucket-region", "")
    return f" (the bucket's region is {region})" if _REGION.fullmatch(region) else ""
