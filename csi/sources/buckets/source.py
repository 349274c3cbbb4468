"""OSS and S3 sources: listings and bytes through our own HTTP client, signed URLs from obstore."""

from __future__ import annotations

import email.utils
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from csi.destinations.destinations import Destinations
from csi.errors import InvalidParameter, OriginUnavailable, SourceNotFound, UnsafeContent
from csi.manifest.manifest import Entry, EntryKind, Manifest, build_manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.sources.buckets.listing import BucketListing
from csi.sources.buckets.listing_page import ListedObject
from csi.sources.buckets.object_store import AccessKey, ObjectStore
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from csi.sources.source import DEFAULT_CONNECTIONS, Source

_FOLDER_MODE = 0o555
# obstore does not sign keys with control characters.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


class BucketSource(Source):
    """The objects below a folder of a bucket."""

    def __init__(
        self,
        spec: CacheSpec,
        credential: Callable[[], AccessKey] | None,
        destinations: Destinations | None = None,
        max_connections: int = DEFAULT_CONNECTIONS,
    ) -> None:
        """Open the source; `credential` provides the access key, None reads anonymously.

        Raises InvalidParameter if `spec` has another source.
        """
        if not isinstance(spec.source, BucketSpec):
            raise InvalidParameter(f"{spec.source.display_name} is not an object store")
        self._spec, self._bucket = spec, spec.source
        self._store = ObjectStore(spec.source, credential)
        self._connections = Connections(max_connections, destinations)
        self._listing = BucketListing(self._store, self._connections)
        self._file_urls = FileUrls(
            lambda entry: self._store.get_object_url(self._key(entry)),
            error_for_status=lambda status, headers: (
                self._store.error_for_status(status) if status in (401, 403, 404) else None
            ),
            is_signed=credential is not None,
            condition_headers=_if_match_headers,
            is_unchanged=_is_unchanged,
        )

    def pin(self) -> CacheSpec:
        """Return the spec itself, as a bucket has no revisions.

        Only the manifest's digest identifies the content.
        """
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List the folder.

        Raises SourceNotFound if it is empty or missing, UnsafeContent for keys that no file system can
        represent.
        """
        manifest = build_manifest(
            self._iter_entries(), pinned.to_context(), preserve_ownership=pinned.preserve_ownership
        )
        if not manifest.entries:
            raise SourceNotFound(f"{self._bucket.display_name} has no objects; check bucket and path")
        return manifest

    def check_read_access(self, manifest: Manifest) -> None:
        """List one page, then read one byte of the smallest non-empty object.

        A refused listing tells the reason, which a refused read does not.
        """
        next(self._listing.iter_objects(), None)
        smallest = min(
            (file for file in manifest.files if file.size), key=lambda file: file.size, default=None
        )
        if smallest is not None:
            with self.open_reader(manifest) as reader:
                reader.read_into(smallest, 0, memoryview(bytearray(1)))

    def open_reader(self, manifest: Manifest) -> RangeReader:
        """Open a reader of the manifest's files; all readers of this source share signed URLs."""
        return RangeReader(self._connections, self._file_urls)

    def close(self) -> None:
        self._connections.close()

    def _iter_entries(self) -> Iterator[Entry]:
        for item in _skip_folder_markers(self._listing.iter_objects()):
            path = self._relative_path(item.key)
            if not item.key.endswith("/"):
                yield self._build_entry(path, item)
            elif item.size:
                raise UnsafeContent(
                    f"{self._bucket.display_name} has an object {path!r} with {item.size} bytes, "
                    "whose key ends with '/' as a folder's does; rename it there"
                )
            elif path:
                yield Entry(path.removesuffix("/"), EntryKind.DIRECTORY, mode=_FOLDER_MODE)

    def _relative_path(self, key: str) -> str:
        prefix = self._store.prefix
        if not key.startswith(prefix):
            raise UnsafeContent(
                f"{self._bucket.display_name} lists an object outside of the folder; "
                "check that the endpoint is an object store"
            )
        if _CONTROL_CHARACTER.search(key):
            raise UnsafeContent(
                f"{self._bucket.display_name} has an object {key[:200]!r}, "
                "whose key contains a control character; rename it there"
            )
        return key.removeprefix(prefix)

    def _build_entry(self, path: str, item: ListedObject) -> Entry:
        identity = json.dumps(
            [self._bucket.endpoint, self._bucket.bucket, item.key, item.etag, item.size, item.mtime_ns]
        )
        return Entry(
            path, EntryKind.FILE, size=item.size, mtime_ns=item.mtime_ns, digest=f"token:object {identity}"
        )

    def _key(self, entry: Entry) -> str:
        return f"{self._bucket.prefix}/{entry.path}".lstrip("/")


def _skip_folder_markers(objects: Iterable[ListedObject]) -> Iterator[ListedObject]:
    """Drop the empty objects that some tools create in place of folders.

    Those of consoles, whose key ends with "/", are kept: they are explicit. Empty objects come last; they and
    all folder names stay in memory.
    """
    empty_objects: list[ListedObject] = []
    folders: set[str] = set()
    for item in objects:
        _add_parents(folders, item.key)
        if item.size or item.key.endswith("/"):
            yield item
        else:
            empty_objects.append(item)
    yield from (item for item in empty_objects if item.key not in folders)


def _add_parents(folders: set[str], key: str) -> None:
    folder = key.rpartition("/")[0]
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def _etag(entry: Entry) -> str:
    return _parse_etag(entry.digest)


@functools.lru_cache(maxsize=64)
def _parse_etag(digest: str) -> str:
    """Parse the ETag from the digest, cached as it is needed before and after each request."""
    return str(json.loads(digest.removeprefix("token:object "))[3])


def _if_match_headers(entry: Entry) -> Mapping[str, str]:
    return {"If-Match": etag} if (etag := _etag(entry)) else {}


def _is_unchanged(entry: Entry, headers: Mapping[str, str]) -> bool:
    """Compare the ETag, or the modification time if the store has no ETags."""
    etag, current_etag = _etag(entry), headers.get("ETag", "")
    if etag and current_etag:
        return etag.removeprefix("W/").strip('"') == current_etag.removeprefix("W/").strip('"')
    last_modified = headers.get("Last-Modified", "")
    try:
        return (
            not last_modified
            or int(email.utils.parsedate_to_datetime(last_modified).timestamp()) == entry.mtime_ns // 10**9
        )
    except (ValueError, OverflowError) as error:
        raise OriginUnavailable(
            f"the store answered for {entry.path!r} with an invalid Last-Modified; check the endpoint"
        ) from error
