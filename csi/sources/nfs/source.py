"""NAS as a source: a folder of an NFS export, read by a client of our own in this process (`csi.sources.nfs.client`), never by a kernel mount."""

from __future__ import annotations

import errno
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from csi.errors import DataCacheError, InvalidParameter, SourceChanged
from csi.manifest.manifest import Entry, Manifest, build
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.client import Connection, Place, refused
from csi.sources.nfs.libnfs import Context, Failure
from csi.sources.nfs.tree import Walk, token

_OPEN_FILES = 4
_CHANGED = (errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


class NasSource:
    """A NAS folder, read with AUTH_SYS as the spec's uid and gid; for one thread, but each reader may go to a thread of its own."""

    def __init__(self, spec: CacheSpec) -> None:
        if not isinstance(spec.source, NasSpec):
            raise InvalidParameter(f"{spec.source.shown} is not a NAS source")
        self._spec = spec
        self._place = Place(spec.source)
        self._connection = Connection(self._place)
        self._samples: list[Entry] | None = None

    def pin(self) -> CacheSpec:
        """The spec itself: a folder has no revisions. What it held is told by the manifest's digest alone."""
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List the folder. Raises SourceNotFound, PermissionDenied, OriginUnavailable, UnsafeContent, OutOfRange."""
        walk = Walk(self._connection, self._identity)
        manifest = build(walk.entries(), pinned.to_context(), preserve_ownership=pinned.preserve_ownership)
        self._samples = list(walk.samples.values())
        return manifest

    def prove(self, manifest: Manifest) -> None:
        """Open and read a byte of the smallest file, and of one file of each combination of owners and modes in the tree.

        Raises PermissionDenied naming the first file that cannot be read, SourceChanged when one is not as in the manifest.
        """
        if self._samples is None:
            self.resolve(self._spec)
        known = {entry.path: entry for entry in manifest.files}
        smallest = min((e for e in known.values() if e.size), key=lambda e: e.size, default=None)
        chosen = {e.path for e in (self._samples or [])} | ({smallest.path} if smallest else set())
        with self._reader(self._connection) as reader:
            for path in sorted(chosen & known.keys()):
                reader.taste(known[path])

    @contextmanager
    def reader(self, manifest: Manifest) -> Iterator[NasReader]:
        """A connection of its own, for one thread; made on the first read."""
        connection = Connection(self._place)
        try:
            with self._reader(connection) as reader:
                yield reader
        finally:
            connection.close()

    def close(self) -> None:
        """Drop the connection that listed and proved."""
        self._connection.close()

    def _reader(self, connection: Connection) -> NasReader:
        return NasReader(connection, self._identity)

    @property
    def _identity(self) -> str:
        source = self._place.spec
        port = f":{source.port}" if source.port else ""
        return f"{source.server.lower()}{port} {self._place.path}"


class NasReader:
    """Reads files by path over one connection, and sees to it that they are those of the manifest.

    A file's attributes are compared after every read, so no bytes of a changed file are ever handed on.
    """

    def __init__(self, connection: Connection, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        # Handles by path, least recently used first; they die with the context they were opened on.
        self._open: OrderedDict[str, int] = OrderedDict()
        self._open_on: Context | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What was read is compared already: where this fails, the server will forget the handles by itself.
        with suppress(Failure):
            while kind is None and self._open and self._open_on and self._connection.has(self._open_on):
                self._open_on.close_file(self._open.popitem()[1])
        self._open.clear()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `entry` from `offset` on. Raises what `csi.manifest.reader.Reader` says."""
        try:
            same = self._connection.attempt(lambda context: self._read(context, entry, offset, buffer))
        except Failure as failure:
            raise self._refused(entry, failure) from failure
        if not same:
            raise self._changed(entry)

    def taste(self, entry: Entry) -> None:
        """Open `entry` and read its first byte, where it has one."""
        self.read_into(entry, 0, memoryview(bytearray(min(1, entry.size))))

    def _read(self, context: Context, entry: Entry, offset: int, buffer: memoryview) -> bool:
        """Whether all of `buffer` was filled from the file that `entry` means."""
        handle = self._handle(context, entry.path)
        count = self._read_some(context, handle, offset, buffer)
        same = token(self._identity, context.stat(handle)) == entry.digest
        if offset + count >= entry.size or not same:
            context.close_file(self._open.pop(entry.path))
        return same and count == len(buffer)

    def _read_some(self, context: Context, handle: int, offset: int, buffer: memoryview) -> int:
        try:
            return context.read(handle, offset, buffer)
        except Failure as failure:
            # Reading a folder that took a file's place fails without a reason; its attributes give one.
            if failure.code == errno.EFAULT and context.stat(handle).format != stat.S_IFREG:
                return 0
            raise

    def _handle(self, context: Context, path: str) -> int:
        if self._open_on is not context:
            self._open.clear()
            self._open_on = context
        if path not in self._open:
            if len(self._open) >= _OPEN_FILES:
                context.close_file(self._open.popitem(last=False)[1])
            self._open[path] = context.open(self._path(path))
        self._open.move_to_end(path)
        return self._open[path]

    def _path(self, path: str) -> bytes:
        return self._connection.below + b"/" + path.encode()

    def _refused(self, entry: Entry, failure: Failure) -> DataCacheError:
        if failure.code in _CHANGED:
            return self._changed(entry)
        return refused(self._connection.place.spec, failure, entry.path.encode())

    def _changed(self, entry: Entry) -> SourceChanged:
        return SourceChanged(
            f"{self._connection.place.spec.shown}: the file {entry.path!r} is not the one this volume was created from "
            "(its file id, size or modification time differ, or it is gone); a new or updated cache picks up what is there now"
        )
