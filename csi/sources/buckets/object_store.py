"""A bucket and the key that reads it: signed URLs, and the meaning of the store's error responses.

Nothing is taken from the environment: keys and endpoints there (AWS_...) belong to a person, not to a volume.
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

from csi.errors import (
    DataCacheError,
    InvalidParameter,
    OriginUnavailable,
    PermissionDenied,
    SourceNotFound,
    Unauthenticated,
)
from csi.parameters.dialects.buckets import BucketSpec
from csi.sources.http.curl_fetch import SigningKey
from csi.sources.http.response_checks import transient_error

if TYPE_CHECKING:
    from obstore.store import S3Config

# Seconds that a signed URL is valid, unless the temporary key that signed it expires earlier.
SIGNED_URL_TTL = 3600
# A temporary key is renewed this long before it expires, since requests with it may be queued or clocks
# differ.
_KEY_EXPIRY_MARGIN = datetime.timedelta(minutes=5)
_CONNECT_TIMEOUT, _MAX_RETRIES = datetime.timedelta(seconds=5), 2
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_ERROR_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_BAD_KEY_CODES = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "InvalidSecurityToken",
)


@dataclass(frozen=True)
class AccessKey:
    """A credential of an object store; `expires` (timezone-aware) is None unless it is temporary."""

    id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires: datetime.datetime | None = None


class ObjectStore:
    """One folder of a bucket. Thread-safe; sends no request itself.

    `credential` is called for a new key whenever the last one is about to expire; None reads anonymously.
    """

    def __init__(self, spec: BucketSpec, credential: Callable[[], AccessKey] | None) -> None:
        self._spec, self._credential = spec, credential
        self._access_key: AccessKey | None = None
        self._signer: S3Store | None = None
        self._clients: dict[float, tuple[AccessKey, S3Store]] = {}
        self._lock = threading.Lock()

    def get_object_url(self, key: str) -> str:
        """Return the URL of an object, valid for SIGNED_URL_TTL seconds, or for ever if read anonymously."""
        if self._credential is None:
            return f"{self.bucket_url.rstrip('/')}/{quote(key)}"
        with self._translate_errors():
            return str(
                obstore.sign(
                    self._get_key_and_signer()[1], "GET", key, datetime.timedelta(seconds=SIGNED_URL_TTL)
                )
            )

    def get_client(self, timeout: float) -> S3Store:
        """Return obstore's client of the bucket, for writing; needs a credential.

        `timeout` limits each request.
        """
        key, _ = self._get_key_and_signer()
        with self._lock, self._translate_errors():
            cached = self._clients.get(timeout)
            if cached is None or cached[0] is not key:
                cached = self._clients[timeout] = (key, self._new_client(key, timeout))
            return cached[1]

    def get_signing_credentials(self) -> tuple[SigningKey | None, dict[str, str]]:
        """Return the key that signs requests to the bucket itself, and headers to send.

        None and {} if anonymous.
        """
        if self._credential is None:
            return None, {}
        key = self._get_key_and_signer()[0]
        headers = {"x-amz-security-token": key.token} if key.token else {}
        return SigningKey(key.id, key.secret, self._region), headers

    def _get_key_and_signer(self) -> tuple[AccessKey, S3Store]:
        with self._lock:
            if self._access_key is None or self._signer is None or _is_expiring(self._access_key):
                if self._credential is None:
                    raise InvalidParameter(
                        f"{self._spec.display_name} can only be written with an access key; "
                        "name the Secret or folder that contains it"
                    )
                self._access_key = self._check_key(self._credential())
                with self._translate_errors():
                    # The signer sends no request, so its timeout never counts.
                    self._signer = self._new_client(self._access_key, SIGNED_URL_TTL)
            return self._access_key, self._signer

    def _check_key(self, key: AccessKey) -> AccessKey:
        if not all(text.isascii() and text.isprintable() for text in (key.id, key.secret, key.token)):
            raise InvalidParameter(
                f"the access key for {self._spec.display_name} contains a line end or another character "
                "that no access key has; write it again"
            )
        return key

    def _new_client(self, key: AccessKey, timeout: float) -> S3Store:
        _remove_aws_environment()
        config: S3Config = {"access_key_id": key.id, "secret_access_key": key.secret}
        if key.token:
            config["session_token"] = key.token
        return S3Store(
            self._spec.bucket,
            config=config,
            endpoint=self._spec.endpoint if self._spec.path_style else self.virtual_hosted_url,
            region=self._region,
            virtual_hosted_style_request=not self._spec.path_style,
            client_options={
                "allow_http": True,
                "connect_timeout": _CONNECT_TIMEOUT,
                "timeout": datetime.timedelta(seconds=timeout),
            },
            retry_config={
                "max_retries": _MAX_RETRIES,
                "retry_timeout": datetime.timedelta(seconds=_MAX_RETRIES * timeout),
            },
        )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate errors of obstore, whose own texts contain URLs, into those of `csi.errors`."""
        try:
            yield
        except BaseError as error:
            raise InvalidParameter(
                f"{self._spec.display_name}: its URLs cannot be signed; "
                "check bucket, path, endpoint and region"
            ) from error

    @property
    def _region(self) -> str:
        # The region that S3-compatible stores without regions expect in signatures.
        return self._spec.region or "us-east-1"

    @property
    def virtual_hosted_url(self) -> str:
        """The URL of the bucket's own host."""
        endpoint = urlsplit(self._spec.endpoint)
        return f"{endpoint.scheme}://{self._spec.bucket}.{endpoint.netloc}"

    @property
    def bucket_url(self) -> str:
        """The URL of the bucket in the configured style."""
        return (
            f"{self._spec.endpoint}/{self._spec.bucket}"
            if self._spec.path_style
            else f"{self.virtual_hosted_url}/"
        )

    @property
    def prefix(self) -> str:
        """The prefix of the folder's keys: "" or a name that ends with '/'."""
        return self._spec.prefix + "/" if self._spec.prefix else ""

    @property
    def display_name(self) -> str:
        """The folder as messages name it."""
        return self._spec.display_name

    @property
    def host(self) -> str:
        """The endpoint's host, for messages."""
        return urlsplit(self._spec.endpoint).netloc

    def error_for_status(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] = _NO_HEADERS
    ) -> DataCacheError:
        """Translate an error response by its status and by S3's error code in `body`, if any."""
        display_name, host, code_match = self._spec.display_name, self.host, _ERROR_CODE.search(body)
        code = code_match[1].decode() if code_match else ""
        if code in _BAD_KEY_CODES or status == 401:
            return Unauthenticated(
                f"{host} refuses the access key for {display_name} ({code or status}): "
                "it is wrong, revoked or expired; check the Secret"
            )
        if status == 403 and self._credential is None:
            return Unauthenticated(
                f"{display_name} does not allow anonymous reads; name a Secret that contains an access key"
            )
        if status == 403:
            return PermissionDenied(
                f"{host} does not let this access key read {display_name}; "
                "give it the rights to list the bucket and read its objects"
            )
        if status == 404:
            return SourceNotFound(f"{display_name} does not exist; check bucket, path and the endpoint")
        if 300 <= status < 400:
            return OriginUnavailable(
                f"{host} does not serve {display_name} but redirects ({code or status}), "
                "which would expose the access key; "
                f"check endpoint and region, bucket and pathStyle{_region_hint(headers)}"
            )
        if status == 400:
            return OriginUnavailable(
                f"{host} does not serve {display_name} ({code or status}); "
                "check endpoint, region, bucket and pathStyle"
            )
        return transient_error(status, headers, f"{host} answered {status} for {display_name}")


def _remove_aws_environment() -> None:
    """Remove all AWS_* variables from this process, a worker, which needs none of them.

    obstore takes everything that it is not given, such as a session token or an endpoint, from there.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]


def _is_expiring(key: AccessKey) -> bool:
    return key.expires is not None and key.expires - datetime.datetime.now(datetime.UTC) < _KEY_EXPIRY_MARGIN


def _region_hint(headers: Mapping[str, str]) -> str:
    region = headers.get("x-amz-bucket-region", "")
    return f" (the bucket's region is {region})" if _REGION.fullmatch(region) else ""
