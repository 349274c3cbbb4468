"""NAS as a source: a folder of an NFS export, read by a client of our own in this process (`csi.sources.nfs`), never by a kernel mount."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from csi.errors import DataCacheError, InvalidParameter, SourceChanged
from csi.sources.libnfs import Context, Failure
from csi.sources.nas_tree import Walk, token
from csi.sources.nfs import Connection, Place, refused
from csi.spec.cache import CacheSpec, NasSpec
from csi.spec.manifest import Entry, Manifest, build

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


@dataclass
class _OpenFile:
    """A file open on one context; the handle dies with it."""

    context: Context
    handle: int
    entry: Entry


class NasReader:
    """Reads files by path over one connection, and sees to it that they are those of the manifest.

    A file's attributes are compared when it is opened for a part, after its last byte, and before it is let go, so no
    bytes of a changed file go unnoticed.
    """

    def __init__(self, connection: Connection, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values() if kind is None else ():
            self._guarded(file.entry, partial(self._let_go, file))
        self._files.clear()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `entry` from `offset` on. Raises what `csi.spec.access.Reader` says."""
        self._guarded(entry, lambda context: self._read(context, entry, offset, buffer))

    def taste(self, entry: Entry) -> None:
        """Open `entry` and read its first byte, where it has one."""
        self.read_into(entry, 0, memoryview(bytearray(min(1, entry.size))))

    def _guarded(self, entry: Entry, work: Callable[[Context], None]) -> None:
        try:
            self._connection.attempt(work)
        except Failure as failure:
            raise self._refused(entry, failure) from failure

    def _read(self, context: Context, entry: Entry, offset: int, buffer: memoryview) -> None:
        ends = offset + len(buffer) == entry.size
        file = self._file(context, entry, whole=ends and offset == 0)
        if context.read(file.handle, offset, buffer) < len(buffer):
            raise self._changed(entry)
        if ends:
            self._let_go(file, context)
            del self._files[entry.path]

    def _file(self, context: Context, entry: Entry, *, whole: bool) -> _OpenFile:
        file = self._files.get(entry.path)
        if file is not None and file.context is context:
            self._files.move_to_end(entry.path)
            return file
        self._make_room(context)
        file = _OpenFile(context, context.open(self._path(entry)), entry)
        # A file that is read in one go is compared once, after its last byte.
        if not whole and not self._is_same(file):
            context.close_file(file.handle)
            raise self._changed(entry)
        self._files[entry.path] = file
        return file

    def _make_room(self, context: Context) -> None:
        while len(self._files) >= _OPEN_FILES:
            path, file = next(iter(self._files.items()))
            self._let_go(file, context)
            del self._files[path]

    def _let_go(self, file: _OpenFile, context: Context) -> None:
        """Compare and close; where the handle died with its connection, the file is opened again for it."""
        if file.context is not context:
            file = _OpenFile(context, context.open(self._path(file.entry)), file.entry)
        same = self._is_same(file)
        context.close_file(file.handle)
        if not same:
            raise self._changed(file.entry)

    def _is_same(self, file: _OpenFile) -> bool:
        return token(self._identity, file.context.stat(file.handle)) == file.entry.digest

    def _path(self, entry: Entry) -> bytes:
        return self._connection.place.below + b"/" + entry.path.encode()

    def _refused(self, entry: Entry, failure: Failure) -> DataCacheError:
        if failure.code in _CHANGED:
            return self._changed(entry)
        return refused(self._connection.place.spec, failure, entry.path.encode())

    def _changed(self, entry: Entry) -> SourceChanged:
        return SourceChanged(
            f"{self._connection.place.spec.shown}: the file {entry.path!r} is not the one this volume was created from "
            "(its file id, size or modification time differ, or it is gone); a new or updated cache picks up what is there now"
        )
