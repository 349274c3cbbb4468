"""An image store in a folder that all nodes have mounted, such as an NFS share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi.errors import (
    DataCacheError,
    NoSpace,
    OriginUnavailable,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
)
from csi.image_store.backend import StoredObject
from csi.image_store.location import FolderStoreSpec
from csi.linux.durable_files import TEMP_SUFFIX, write_bytes
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader


class FolderBackend:
    """See Backend. The folder itself has to be there: an empty place where nothing is mounted must not look like a store.

    What root puts there is given to the folder's owner, so that programs which are not root, but the owner, can remove it.
    """

    def __init__(self, spec: FolderStoreSpec) -> None:
        self._root, self.display_name = spec.path, spec.display_name

    def get(self, key: str) -> bytes | None:
        """See Backend."""
        with self._translate_errors():
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                return None

    def size(self, key: str) -> int | None:
        """See Backend."""
        with self._translate_errors():
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def put(self, key: str, content: bytes | memoryview) -> None:
        """See Backend: a file is written beside its place, synced and renamed."""
        path = self._path(key)
        with self._translate_errors():
            for folder in [*reversed(path.relative_to(self._root).parents)][1:]:
                self._make_folder(self._root / folder)
            write_bytes(path, content, 0o644)
            self._give_to_owner(path)

    def _make_folder(self, folder: Path) -> None:
        with suppress(FileExistsError):
            folder.mkdir()
            self._give_to_owner(folder)

    def _give_to_owner(self, path: Path) -> None:
        """An export that squashes root has given it already, to whom it says."""
        if os.geteuid() == 0:
            owner = self._root.stat()
            with suppress(PermissionError):
                os.chown(path, owner.st_uid, owner.st_gid)

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        """See Backend; files that are being written are not there yet."""
        with self._translate_errors():
            for parent, _, names in os.walk(self._path(folder)):
                for name in sorted(names):
                    if not name.endswith(TEMP_SUFFIX):
                        yield from self._stat(Path(parent, name))

    def list_folders(self, folder: str) -> Iterator[str]:
        """See Backend."""
        with self._translate_errors():
            folder_path = self._path(folder)
            yield from (
                sorted(path.name for path in folder_path.iterdir() if path.is_dir())
                if folder_path.is_dir()
                else ()
            )

    def _stat(self, path: Path) -> Iterator[StoredObject]:
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        yield StoredObject(str(path.relative_to(self._root)), status.st_size, status.st_mtime)

    def delete(self, key: str) -> None:
        """See Backend; folders that are empty then go too."""
        with self._translate_errors():
            self._unlink(self._path(key))

    def sweep(self, modified_before: float) -> None:
        """See Backend."""
        with self._translate_errors():
            for path in list(self._path("").rglob(f".*{TEMP_SUFFIX}")):
                if any(kept.modified_at < modified_before for kept in self._stat(path)):
                    self._unlink(path)

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self._root or not _remove_if_empty(folder):
                break

    def get_reader_factory(self, folder: str) -> OpenReader:
        """See Backend."""
        return lambda: self._open_reader(folder)

    @contextmanager
    def _open_reader(self, folder: str) -> Iterator[_FolderReader]:
        yield _FolderReader(self, folder)

    def close(self) -> None:
        """Nothing is open."""

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of an object on. Raises SourceNotFound and SourceChanged beside what all raise."""
        with self._translate_errors():
            try:
                with self._path(key).open("rb", buffering=0) as stream:
                    done = os.preadv(stream.fileno(), [buffer], offset)
            except FileNotFoundError as error:
                raise SourceNotFound(f"{self.display_name} has no {key} any more") from error
        if done != len(buffer):
            raise SourceChanged(f"{self.display_name}: {key} is shorter than when it was put there")

    def _path(self, key: str) -> Path:
        if not self._root.is_dir():
            raise OriginUnavailable(
                f"{self.display_name}, the image store, is not there; mount it on this node, at the same place in the plugin's container"
            )
        return self._root / key

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._backend_error(error) from error

    def _backend_error(self, error: OSError) -> DataCacheError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpace(
                f"{self.display_name}, the image store, is full; add room, or let fewer caches be kept"
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return PermissionDenied(
                f"{self.display_name}, the image store, may not be used ({error.strerror}); give this driver's user the right"
            )
        return OriginUnavailable(f"{self.display_name}, the image store, cannot be used: {error.strerror}")


class _FolderReader:
    """See `csi.manifest.reader.Reader`."""

    def __init__(self, backend: FolderBackend, folder: str) -> None:
        self._backend, self._folder = backend, folder

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        self._backend.read_into(f"{self._folder}/{entry.path}", offset, buffer)


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
