"""An image store in a bucket: obstore puts and lists, our own HTTP engine reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

from csi.errors import DataCacheError, FailedPrecondition, OriginUnavailable, PermissionDenied, Unauthenticated
from csi.image_store.backend import Kept
from csi.manifest.reader import OpenReader
from csi.parameters.dialects.buckets import ObjectSpec
from csi.sources.buckets.object_store import ObjectStore
from csi.sources.catalog import access_key
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import Addresses
from csi.sources.http.range_reader import RangeReader

_CONNECTIONS = 16
# obstore's own patience, three minutes, would keep fills from their origins; a part may take long over a slow line.
_ASK_SECONDS, _PUT_SECONDS = 8.0, 900.0
_NO_BUCKET = "NoSuchBucket"
_OTHER_REGION = re.compile(r"AuthorizationHeaderMalformed.*<Region>([a-z0-9-]{1,32})</Region>", re.DOTALL)


class BucketBackend:
    """See Backend. Raises InvalidParameter where `secrets` hold no key for such a bucket."""

    def __init__(self, where: ObjectSpec, secrets: Mapping[str, str]) -> None:
        self._where, self.shown = where, f"the image store {where.shown}"
        self._store = ObjectStore(where, access_key(where, secrets))
        self._connections = Connections(_CONNECTIONS)

    def get(self, key: str) -> bytes | None:
        """See Backend."""
        with self._faults():
            try:
                return bytes(obstore.get(self._store.client(_ASK_SECONDS), self._key(key)).bytes())
            except (NotFoundError, FileNotFoundError) as error:
                if _NO_BUCKET in str(error):
                    raise
                return None

    def size(self, key: str) -> int | None:
        """See Backend."""
        with self._faults():
            try:
                return int(obstore.head(self._store.client(_ASK_SECONDS), self._key(key))["size"])
            except (NotFoundError, FileNotFoundError):
                return None

    def put(self, key: str, content: bytes | memoryview) -> None:
        """See Backend: one request, so the object is whole or not there."""
        with self._faults():
            obstore.put(self._store.client(_PUT_SECONDS), self._key(key), content, use_multipart=False)

    def list(self, folder: str) -> Iterator[Kept]:
        """See Backend."""
        with self._faults():
            for page in obstore.list(self._store.client(_ASK_SECONDS), self._key(folder), chunk_size=1000):
                for item in page:
                    yield Kept(item["path"].removeprefix(self._store.prefix), item["size"], item["last_modified"].timestamp())

    def folders(self, folder: str) -> Iterator[str]:
        """See Backend."""
        with self._faults():
            found = obstore.list_with_delimiter(self._store.client(_ASK_SECONDS), self._key(folder))
            yield from sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def delete(self, key: str) -> None:
        """See Backend."""
        with self._faults():
            try:
                obstore.delete(self._store.client(_ASK_SECONDS), self._key(key))
            except (NotFoundError, FileNotFoundError):
                return

    def tidy(self, before: float) -> None:
        """See Backend; one request leaves nothing."""

    def reader(self, folder: str) -> OpenReader:
        """See Backend; all its readers share what was signed."""
        addresses = Addresses(
            lambda entry: self._store.address(self._key(f"{folder}/{entry.path}")),
            refusal=lambda status, headers: self._store.refusal(status) if status in (401, 403, 404) else None,
            signs=True,
        )
        return lambda: RangeReader(self._connections, addresses)

    def close(self) -> None:
        """See Backend."""
        self._connections.close()

    def _key(self, key: str) -> str:
        return self._store.prefix + key

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Errors of obstore as those of `csi.errors`; its own texts hold addresses."""
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._named(error) from error

    def _named(self, error: Exception) -> DataCacheError:
        # Of a single object obstore has a class for each answer, of a listing and of many objects the answer's text alone.
        said = str(error)
        if isinstance(error, UnauthenticatedError) or "status code: 401" in said:
            return Unauthenticated(f"{self.shown} refuses the driver's access key; check the Secret of --image-store-secret")
        if isinstance(error, PermissionDeniedError | PermissionError) or "status code: 403" in said or "AccessDenied" in said:
            return PermissionDenied(
                f"{self.shown} refuses the driver's access key, or does not let it read, write, list and delete objects; check it and its rights"
            )
        if _NO_BUCKET in said:
            return OriginUnavailable(f"{self.shown} is not there: no such bucket; make it, or check the URL of --image-store")
        if found := _OTHER_REGION.search(said):
            return FailedPrecondition(
                f"{self.shown} is in the region {found[1]}, and not in that of the URL of --image-store; say region={found[1]} there"
            )
        return OriginUnavailable(f"{self.shown} cannot be reached, or does not do what is asked ({type(error).__name__})")
