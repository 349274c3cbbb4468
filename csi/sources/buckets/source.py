"""OSS and S3 as sources: listings and bytes through our own HTTP engine, signed addresses from the store's client."""

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

_FILL_CONNECTIONS = 16
_FOLDER_MODE = 0o555
# obstore signs no key that has one.
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


class ObjectSource:
    """The objects below a folder of a bucket. Implements `csi.sources.source.Source`."""

    def __init__(
        self,
        spec: CacheSpec,
        credential: Callable[[], AccessKey] | None,
        destinations: Destinations | None = None,
    ) -> None:
        """`credential` gives the access key to read with; None reads as anybody. Raises InvalidParameter when `spec` is of another source."""
        if not isinstance(spec.source, BucketSpec):
            raise InvalidParameter(f"{spec.source.display_name} is no object store")
        self._spec, self._bucket = spec, spec.source
        self._store = ObjectStore(spec.source, credential)
        self._connections = Connections(_FILL_CONNECTIONS, destinations)
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
        """The spec itself: a bucket has no revisions. What it held is told by the manifest's digest alone."""
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List the folder. Raises SourceNotFound for an empty or missing one, UnsafeContent for keys that no file system can show."""
        manifest = build_manifest(
            self._iter_entries(), pinned.to_context(), preserve_ownership=pinned.preserve_ownership
        )
        if not manifest.entries:
            raise SourceNotFound(f"{self._bucket.display_name} has no objects; check bucket and path")
        return manifest

    def check_read_access(self, manifest: Manifest) -> None:
        """List a page, whose refusal says why, then read one byte of the smallest object that has one."""
        next(self._listing.objects(), None)
        smallest = min(
            (file for file in manifest.files if file.size), key=lambda file: file.size, default=None
        )
        if smallest is not None:
            with self.open_reader(manifest) as reader:
                reader.read_into(smallest, 0, memoryview(bytearray(1)))

    def open_reader(self, manifest: Manifest) -> RangeReader:
        """A reader of the manifest's files; all readers of this source share what was signed."""
        return RangeReader(self._connections, self._file_urls)

    def close(self) -> None:
        """Let go of all connections."""
        self._connections.close()

    def _iter_entries(self) -> Iterator[Entry]:
        for item in _skip_folder_markers(self._listing.objects()):
            path = self._relative_path(item.key)
            if not item.key.endswith("/"):
                yield self._build_entry(path, item)
            elif item.size:
                raise UnsafeContent(
                    f"{self._bucket.display_name} has an object {path!r} with {item.size} bytes, whose key is a folder's; rename it there"
                )
            elif path:
                yield Entry(path.removesuffix("/"), EntryKind.DIRECTORY, mode=_FOLDER_MODE)

    def _relative_path(self, key: str) -> str:
        prefix = self._store.prefix
        if not key.startswith(prefix):
            raise UnsafeContent(
                f"{self._bucket.display_name} lists an object outside of it; check that the endpoint is an object store"
            )
        if _CONTROL_CHARACTER.search(key):
            raise UnsafeContent(
                f"{self._bucket.display_name} has an object {key[:200]!r}, whose key holds a control character; rename it there"
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
    """Without the empty objects that some tools put where a folder is, but for those that consoles do, which say so ("folder/").
    Of what went by, the empty ones and the folders are kept.
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
    """Kept: it is asked for before and after each request."""
    return str(json.loads(digest.removeprefix("token:object "))[3])


def _if_match_headers(entry: Entry) -> Mapping[str, str]:
    return {"If-Match": etag} if (etag := _etag(entry)) else {}


def _is_unchanged(entry: Entry, headers: Mapping[str, str]) -> bool:
    """By the ETag; a store that gives none is judged by the time."""
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
            f"the store answered for {entry.path!r} with a Last-Modified that is no time; check the endpoint"
        ) from error
