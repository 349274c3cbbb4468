"""An image store in a bucket: obstore writes and lists, our own HTTP client reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

from csi.errors import (
    DataCacheError,
    FailedPrecondition,
    OriginUnavailable,
    PermissionDenied,
    Unauthenticated,
)
from csi.image_store.backend import Backend, StoredObject
from csi.manifest.reader import OpenReader
from csi.parameters.dialects.buckets import BucketSpec
from csi.sources.buckets.object_store import ObjectStore
from csi.sources.catalog import find_access_key
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader

_MAX_CONNECTIONS = 16
# Seconds. obstore's own three minutes would delay the fallback of fills to their origins; writing a part may
# take long over a slow link.
_REQUEST_TIMEOUT, _PUT_TIMEOUT = 8.0, 900.0
_NO_BUCKET = "NoSuchBucket"
# S3's answer to a request signed for another region names the right one.
_OTHER_REGION = re.compile(r"AuthorizationHeaderMalformed.*<Region>([a-z0-9-]{1,32})</Region>", re.DOTALL)


class BucketBackend(Backend):
    """Backend in a bucket. Raises InvalidParameter if `secrets` have no key for such a bucket."""

    def __init__(self, spec: BucketSpec, secrets: Mapping[str, str]) -> None:
        self._spec = spec
        self._store = ObjectStore(spec, find_access_key(spec, secrets))
        self._connections = Connections(_MAX_CONNECTIONS)

    @property
    def display_name(self) -> str:
        return f"the image store {self._spec.display_name}"

    def get(self, key: str) -> bytes | None:
        with self._translate_errors():
            try:
                return bytes(obstore.get(self._store.get_client(_REQUEST_TIMEOUT), self._key(key)).bytes())
            except (NotFoundError, FileNotFoundError) as error:
                # A missing bucket must not look like a missing object.
                if _NO_BUCKET in str(error):
                    raise
                return None

    def size(self, key: str) -> int | None:
        with self._translate_errors():
            try:
                return int(obstore.head(self._store.get_client(_REQUEST_TIMEOUT), self._key(key))["size"])
            except (NotFoundError, FileNotFoundError):
                return None

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write an object in one request, which makes it complete or absent."""
        with self._translate_errors():
            obstore.put(self._store.get_client(_PUT_TIMEOUT), self._key(key), content, use_multipart=False)

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        with self._translate_errors():
            for page in obstore.list(
                self._store.get_client(_REQUEST_TIMEOUT), self._key(folder), chunk_size=1000
            ):
                for item in page:
                    yield StoredObject(
                        item["path"].removeprefix(self._store.prefix),
                        item["size"],
                        item["last_modified"].timestamp(),
                    )

    def list_folders(self, folder: str) -> Iterator[str]:
        with self._translate_errors():
            listing = obstore.list_with_delimiter(self._store.get_client(_REQUEST_TIMEOUT), self._key(folder))
            yield from sorted(path.rstrip("/").rpartition("/")[2] for path in listing["common_prefixes"])

    def delete(self, key: str) -> None:
        with self._translate_errors():
            try:
                obstore.delete(self._store.get_client(_REQUEST_TIMEOUT), self._key(key))
            except (NotFoundError, FileNotFoundError):
                return

    def sweep(self, modified_before: float) -> None:
        """Do nothing: an interrupted request leaves nothing behind."""

    def get_reader_factory(self, folder: str) -> OpenReader:
        """Return a factory of readers, which all share signed URLs."""
        file_urls = FileUrls(
            lambda entry: self._store.get_object_url(self._key(f"{folder}/{entry.path}")),
            error_for_status=lambda status, headers: (
                self._store.error_for_status(status) if status in (401, 403, 404) else None
            ),
            is_signed=True,
        )
        return lambda: RangeReader(self._connections, file_urls)

    def close(self) -> None:
        self._connections.close()

    def _key(self, key: str) -> str:
        return self._store.prefix + key

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate errors of obstore, whose own texts contain URLs, into those of `csi.errors`."""
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._backend_error(error) from error

    def _backend_error(self, error: Exception) -> DataCacheError:
        # For single objects obstore has an exception class per status; for listings and batches only the text
        # tells.
        text = str(error)
        if isinstance(error, UnauthenticatedError) or "status code: 401" in text:
            return Unauthenticated(
                f"{self.display_name} refuses the driver's access key; "
                "check the Secret of --image-store-secret"
            )
        if (
            isinstance(error, PermissionDeniedError | PermissionError)
            or "status code: 403" in text
            or "AccessDenied" in text
        ):
            return PermissionDenied(
                f"{self.display_name} refuses the driver's access key, "
                "or does not let it read, write, list and delete objects; check it and its rights"
            )
        if _NO_BUCKET in text:
            return OriginUnavailable(
                f"{self.display_name} does not exist: no such bucket; "
                "create it, or check the URL of --image-store"
            )
        if match := _OTHER_REGION.search(text):
            return FailedPrecondition(
                f"{self.display_name} is in the region {match[1]}, not in that of the URL of --image-store; "
                f"write region={match[1]} there"
            )
        return OriginUnavailable(
            f"{self.display_name} cannot be reached, or does not execute requests ({type(error).__name__})"
        )
