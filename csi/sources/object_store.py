"""The client of object stores: lists a folder of a bucket and signs addresses, over obstore. Bytes go through `csi.sources.http`.

Nothing is taken from the environment but proxies and trust: keys and endpoints there (AWS_...) are a person's, not a volume's.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from csi.errors import DataCacheError, OriginUnavailable, PermissionDenied, SourceNotFound, Unauthenticated, UnsafeContent
from csi.sources.answers import passing_fault
from csi.sources.connections import CA_KEYS, CONNECT_SECONDS, SILENCE_SECONDS, proxy_for
from csi.spec.objects import ObjectSpec

if TYPE_CHECKING:
    from obstore.store import ClientConfig

SIGNED_SECONDS = 3600
_PAGE = 1000
_IDLE_SECONDS = 2
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_BAD_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "InvalidSecurityToken")


@dataclass(frozen=True)
class AccessKey:
    """A credential of an object store; `expires` (aware) is when a temporary one ends, None for one that does not."""

    id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires: datetime.datetime | None = None


@dataclass(frozen=True)
class Listed:
    """An object as its bucket lists it; `etag` is "" where the store gives none."""

    key: str
    size: int
    mtime_ns: int
    etag: str


class ObjectStore:
    """One bucket folder; `credential` is asked for a key whenever the last one ends, None reads as anybody. Thread-safe."""

    def __init__(self, spec: ObjectSpec, credential: Callable[[], AccessKey] | None) -> None:
        self._spec = spec
        self._anonymous = credential is None
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        with self.explained():
            self._store = S3Store(
                spec.bucket,
                endpoint=self.base if spec.path_style is False else spec.endpoint,
                region=spec.region or "us-east-1",
                virtual_hosted_style_request=not spec.path_style,
                client_options=_client_options(spec.endpoint),
                retry_config={"max_retries": 2, "retry_timeout": datetime.timedelta(seconds=30)},
                **({"credential_provider": _provider(credential)} if credential else {"skip_signature": True}),
            )

    def list(self) -> Iterator[Listed]:
        """Every object of the folder, a page of a thousand at a time."""
        prefix = self._spec.prefix + "/" if self._spec.prefix else None
        with self.explained():
            for page in self._store.list(prefix, chunk_size=_PAGE):
                for item in page:
                    yield _listed(item)

    def address(self, key: str) -> str:
        """Where an object's bytes are for SIGNED_SECONDS; for a bucket that is read as anybody, for ever."""
        if self._anonymous:
            return f"{self.base}/{quote(key)}" if not self._spec.path_style else f"{self._spec.endpoint}/{self._spec.bucket}/{quote(key)}"
        with self.explained():
            return str(obstore.sign(self._store, "GET", key, datetime.timedelta(seconds=SIGNED_SECONDS)))

    def close(self) -> None:
        """Let go of its connections; the store cannot be asked any more."""
        del self._store

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of obstore as those of `csi.errors`; its own texts hold addresses and answers."""
        try:
            yield
        except BaseError as error:
            raise self._in_words(str(error)) from error

    @property
    def base(self) -> str:
        """The bucket's own host."""
        where = urlsplit(self._spec.endpoint)
        return f"{where.scheme}://{self._spec.bucket}.{where.netloc}"

    @property
    def host(self) -> str:
        """The endpoint's host, for messages."""
        return urlsplit(self._spec.endpoint).netloc

    def _in_words(self, text: str) -> DataCacheError:
        status, code = _STATUS.search(text), _CODE.search(text)
        if status is None and "path" in text.lower() and ("segment" in text or "parse" in text.lower()):
            return UnsafeContent(
                f"{self._spec.shown} has an object whose key is no path of a file system (an empty, '.' or '..' part); rename it there"
            )
        if status is None:
            return OriginUnavailable(f"{self.host}: it cannot be reached or answers as no object store does; check the endpoint and the network")
        return self.refusal(int(status[1]), code[1] if code else "")

    def refusal(self, status: int, code: str = "") -> DataCacheError:
        """What an error answer of the store means, by its status and S3's error code where there is one."""
        what, where = self._spec.shown, self.host
        if code in _BAD_KEYS or status == 401:
            return Unauthenticated(f"{where} refuses the access key for {what} ({code or status}): it is wrong, revoked or expired; check the Secret")
        if status == 403 and self._anonymous:
            return Unauthenticated(f"{what} may not be read by anybody; name a Secret that holds an access key")
        if status == 403:
            return PermissionDenied(f"{where} does not let this access key read {what}; give it the rights to list the bucket and read its objects")
        if status == 404:
            return SourceNotFound(f"{what} does not exist; check bucket, path and the endpoint")
        if status in (301, 307, 400):
            return OriginUnavailable(f"{where} does not serve {what} ({code or status}); check endpoint, region, bucket and pathStyle")
        return passing_fault(status, {}, f"{where} answered {status} for {what}")


def _listed(item: Any) -> Listed:
    moved = item["last_modified"]
    return Listed(item["path"], item["size"], int(moved.timestamp()) * 10**9 + moved.microsecond * 1000, item["e_tag"] or "")


def _provider(credential: Callable[[], AccessKey]) -> Callable[[], dict[str, Any]]:
    def provide() -> dict[str, Any]:
        key = credential()
        return {"access_key_id": key.id, "secret_access_key": key.secret, "token": key.token or None, "expires_at": key.expires}

    return provide


def _client_options(endpoint: str) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": True,
        "connect_timeout": datetime.timedelta(seconds=CONNECT_SECONDS),
        "timeout": datetime.timedelta(seconds=2 * SILENCE_SECONDS),
        # Idle connections outlive the store that used them.
        "pool_idle_timeout": datetime.timedelta(seconds=_IDLE_SECONDS),
    }
    if proxy := proxy_for(endpoint):
        options["proxy_url"] = proxy
    bundle = next((os.environ[key] for key in CA_KEYS if os.environ.get(key)), "")
    if bundle and Path(bundle).is_file():
        options["root_certificate"] = Path(bundle).read_bytes()
    return options
