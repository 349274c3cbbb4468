"""NAS sources: a folder of an NFS export.

It is read by our own client in this process, never through a kernel mount.
"""

from __future__ import annotations

import errno
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from csi.errors import DataCacheError, InvalidParameter, SourceChanged
from csi.manifest.manifest import Entry, Manifest, build_manifest
from csi.manifest.reader import Reader
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.client import NfsConnection, NfsFolder, path_error
from csi.sources.nfs.libnfs import NfsContext, NfsError
from csi.sources.nfs.tree import TreeWalk, build_file_token
from csi.sources.source import Source

# Open handles of one reader; NFSv4 servers keep state for each.
_MAX_OPEN_FILES = 4
_CHANGED_ERRNOS = (errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


class NasSource(Source):
    """A NAS folder, read with AUTH_SYS as the spec's uid and gid.

    For one thread; readers may be used in other threads.
    """

    def __init__(self, spec: CacheSpec) -> None:
        if not isinstance(spec.source, NasSpec):
            raise InvalidParameter(f"{spec.source.display_name} is not a NAS source")
        self._spec = spec
        self._folder = NfsFolder(spec.source)
        self._connection = NfsConnection(self._folder)
        self._samples: list[Entry] | None = None

    def pin(self) -> CacheSpec:
        """Return the spec itself, as a folder has no revisions.

        Only the manifest's digest identifies the content.
        """
        return self._spec

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List the folder.

        Raises SourceNotFound, PermissionDenied, OriginUnavailable, UnsafeContent, OutOfRange.
        """
        walk = TreeWalk(self._connection, self._identity)
        manifest = build_manifest(
            walk.iter_entries(), pinned.to_context(), preserve_ownership=pinned.preserve_ownership
        )
        self._samples = list(walk.samples.values())
        return manifest

    def check_read_access(self, manifest: Manifest) -> None:
        """Read a byte of one file for each combination of owners and modes in the tree.

        Reads one of the smallest file too. Raises PermissionDenied naming the first file that cannot be read,
        SourceChanged if one differs from the manifest.
        """
        if self._samples is None:
            self.resolve(self._spec)
        entries = {entry.path: entry for entry in manifest.files}
        smallest = min((e for e in entries.values() if e.size), key=lambda e: e.size, default=None)
        sampled = {e.path for e in (self._samples or [])} | ({smallest.path} if smallest else set())
        with self._reader(self._connection) as reader:
            for path in sorted(sampled & entries.keys()):
                reader.read_probe(entries[path])

    @contextmanager
    def open_reader(self, manifest: Manifest) -> Iterator[NasReader]:
        """Open a connection for one thread, established on the first read."""
        connection = NfsConnection(self._folder)
        try:
            with self._reader(connection) as reader:
                yield reader
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connection used for listing and access checks."""
        self._connection.close()

    def _reader(self, connection: NfsConnection) -> NasReader:
        return NasReader(connection, self._identity)

    @property
    def _identity(self) -> str:
        source = self._folder.spec
        port = f":{source.port}" if source.port else ""
        return f"{source.server.lower()}{port} {self._folder.path}"


class NasReader(Reader):
    """Reader of files by path over one connection, which checks that they are those of the manifest.

    A file's attributes are compared after every read, so no bytes of a changed file are ever passed on.
    """

    def __init__(self, connection: NfsConnection, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        # Handles by path, least recently used first; they are invalid after their context is replaced.
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._handles_context: NfsContext | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Failures do not matter: everything read was compared already, and the server expires handles by
        # itself.
        with suppress(NfsError):
            while (
                kind is None
                and self._handles
                and self._handles_context
                and self._connection.is_current(self._handles_context)
            ):
                self._handles_context.close_file(self._handles.popitem()[1])
        self._handles.clear()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        try:
            is_unchanged = self._connection.run_with_retry(
                lambda context: self._read_verified(context, entry, offset, buffer)
            )
        except NfsError as failure:
            raise self._read_error(entry, failure) from failure
        if not is_unchanged:
            raise self._changed_error(entry)

    def read_probe(self, entry: Entry) -> None:
        """Open `entry` and read its first byte, if it has one."""
        self.read_into(entry, 0, memoryview(bytearray(min(1, entry.size))))

    def _read_verified(self, context: NfsContext, entry: Entry, offset: int, buffer: memoryview) -> bool:
        """Read, and return whether all of `buffer` was filled from the file in the manifest."""
        handle = self._get_handle(context, entry.path)
        # Attributes are read after the bytes: a change in between makes them differ.
        count = self._read_bytes(context, handle, offset, buffer)
        is_unchanged = build_file_token(self._identity, context.stat(handle)) == entry.digest
        if offset + count >= entry.size or not is_unchanged:
            context.close_file(self._handles.pop(entry.path))
        return is_unchanged and count == len(buffer)

    def _read_bytes(self, context: NfsContext, handle: int, offset: int, buffer: memoryview) -> int:
        try:
            return context.read(handle, offset, buffer)
        except NfsError as failure:
            # libnfs gives no reason for reading a folder that has replaced a file; the attributes do.
            if failure.code == errno.EFAULT and context.stat(handle).file_type != stat.S_IFREG:
                return 0
            raise

    def _get_handle(self, context: NfsContext, path: str) -> int:
        if self._handles_context is not context:
            self._handles.clear()
            self._handles_context = context
        if path not in self._handles:
            if len(self._handles) >= _MAX_OPEN_FILES:
                context.close_file(self._handles.popitem(last=False)[1])
            self._handles[path] = context.open(self._path(path))
        self._handles.move_to_end(path)
        return self._handles[path]

    def _path(self, path: str) -> bytes:
        return self._connection.relative_path + b"/" + path.encode()

    def _read_error(self, entry: Entry, failure: NfsError) -> DataCacheError:
        if failure.code in _CHANGED_ERRNOS:
            return self._changed_error(entry)
        return path_error(self._connection.folder.spec, failure, entry.path.encode())

    def _changed_error(self, entry: Entry) -> SourceChanged:
        return SourceChanged(
            f"{self._connection.folder.spec.display_name}: the file {entry.path!r} "
            "is not the one this volume was created from "
            "(its file id, size or modification time differ, or it is gone); "
            "a new or updated cache picks up what is there now"
        )
