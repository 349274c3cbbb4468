"""OSS and S3 as sources: facts and signed addresses from the store's own client, bytes through the ranged HTTP engine."""

from __future__ import annotations

import email.utils
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from csi.errors import InvalidParameter, SourceNotFound, UnsafeContent
from csi.sources.connections import Connections
from csi.sources.destinations import Destinations
from csi.sources.http import Addresses, RangeReader
from csi.sources.object_store import AccessKey, Listed, ObjectStore
from csi.spec.cache import CacheSpec
from csi.spec.manifest import Entry, Kind, Manifest, build
from csi.spec.objects import ObjectSpec

_FILL_CONNECTIONS = 16


class ObjectSource:
    """The objects below a folder of a bucket. Implements `csi.sources.source.Source`."""

    def __init__(self, spec: CacheSpec, credential: Callable[[], AccessKey] | None, where: Destinations | None = None) -> None:
        """`credential` gives the access key to read with; None reads as anybody. Raises InvalidParameter when `spec` is of another source."""
        if not isinstance(spec.source, ObjectSpec):
            raise InvalidParameter(f"{spec.source.shown} is no object store")
        self._spec, self._bucket = spec, spec.source
        self._store = ObjectStore(spec.source, credential)
        self._connections = Connections(_FILL_CONNECTIONS, self._with_bucket(where or Destinations()))
        self._addresses = Addresses(
            lambda entry: self._store.address(self._key(entry)),
            refusal=lambda status, headers: self._store.refusal(status) if status in (401, 403, 404) else None,
            signs=credential is not None,
            conditions=_conditions,
            unchanged=_unchanged,
        )

    def _with_bucket(self, where: Destinations) -> Destinations:
        """Who may name the endpoint (the operator's list says so) may name a bucket that is a name below it."""
        below = [] if where.trusted or self._bucket.path_style else [urlsplit(self._store.base).netloc]
        return replace(where, allowed=(*where.allowed, *below))

    def pin(self) -> CacheSpec:
        """The spec itself: a bucket has no revisions. What it held is told by the manifest's digest alone."""
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List the folder. Raises SourceNotFound for an empty or missing one, UnsafeContent for keys that no file system can show."""
        manifest = build(map(self._entry, _files(self._store.list())), pinned.to_context(), preserve_ownership=pinned.preserve_ownership)
        if not manifest.entries:
            raise SourceNotFound(f"{self._bucket.shown} has no objects; check bucket and path")
        return manifest

    def prove(self, manifest: Manifest) -> None:
        """List a page, whose refusal says why, then read one byte of the smallest object that has one."""
        next(self._store.list(), None)
        smallest = min((file for file in manifest.files if file.size), key=lambda file: file.size, default=None)
        if smallest is not None:
            with self.reader(manifest) as reader:
                reader.read_into(smallest, 0, memoryview(bytearray(1)))

    def reader(self, manifest: Manifest) -> RangeReader:
        """A reader of the manifest's files; all readers of this source share what was signed."""
        return RangeReader(self._connections, self._addresses)

    def close(self) -> None:
        """Let go of all connections."""
        self._connections.close()
        self._store.close()

    def _entry(self, item: Listed) -> Entry:
        prefix = self._bucket.prefix + "/" if self._bucket.prefix else ""
        if not item.key.startswith(prefix):
            raise UnsafeContent(f"{self._bucket.shown} lists an object outside of it; check that the endpoint is an object store")
        identity = json.dumps([self._bucket.endpoint, self._bucket.bucket, item.key, item.etag, item.size, item.mtime_ns])
        return Entry(item.key.removeprefix(prefix), Kind.FILE, size=item.size, mtime_ns=item.mtime_ns, digest=f"token:object {identity}")

    def _key(self, entry: Entry) -> str:
        return f"{self._bucket.prefix}/{entry.path}".lstrip("/")


def _files(listed: Iterable[Listed]) -> Iterator[Listed]:
    """Without the empty objects that consoles put where a folder is. Of what went by, the empty ones and the folders are kept."""
    empty: list[Listed] = []
    folders: set[str] = set()
    for item in listed:
        _add_parents(folders, item.key)
        if item.size:
            yield item
        else:
            empty.append(item)
    yield from (item for item in empty if item.key not in folders)


def _add_parents(folders: set[str], key: str) -> None:
    folder = key.rpartition("/")[0]
    while folder and folder not in folders:
        folders.add(folder)
        folder = folder.rpartition("/")[0]


def _etag(entry: Entry) -> str:
    return str(json.loads(entry.digest.removeprefix("token:object "))[3])


def _conditions(entry: Entry) -> Mapping[str, str]:
    return {"If-Match": etag} if (etag := _etag(entry)) else {}


def _unchanged(entry: Entry, headers: Mapping[str, str]) -> bool:
    """By the ETag; a store that gives none is judged by the time."""
    etag, now = _etag(entry), headers.get("ETag", "")
    if etag and now:
        return etag.removeprefix("W/").strip('"') == now.removeprefix("W/").strip('"')
    moved = headers.get("Last-Modified", "")
    return not moved or int(email.utils.parsedate_to_datetime(moved).timestamp()) == entry.mtime_ns // 10**9
