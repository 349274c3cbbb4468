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
from csi.image_store.backend import Backend, StoredObject
from csi.image_store.location import FolderStoreSpec
from csi.linux.durable_files import TEMP_SUFFIX, write_bytes
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader, Reader


class FolderBackend(Backend):
    """Backend in a folder, which must exist: an empty mount point without a mount must not look like a store.

    What root writes is given to the folder's owner, so that programs running as the owner can remove it.
    """

    def __init__(self, spec: FolderStoreSpec) -> None:
        self._root, self._display_name = spec.path, spec.display_name

    @property
    def display_name(self) -> str:
        return self._display_name

    def get(self, key: str) -> bytes | None:
        with self._translate_errors():
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                return None

    def size(self, key: str) -> int | None:
        with self._translate_errors():
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write a file under a temporary name, sync it and rename it."""
        path = self._path(key)
        with self._translate_errors():
            # One by one, to give each new folder to the owner.
            for folder in [*reversed(path.relative_to(self._root).parents)][1:]:
                self._make_folder(self._root / folder)
            write_bytes(path, content, 0o644)
            self._give_to_owner(path)

    def _make_folder(self, folder: Path) -> None:
        with suppress(FileExistsError):
            folder.mkdir()
            self._give_to_owner(folder)

    def _give_to_owner(self, path: Path) -> None:
        """Change the owner to the folder's; an export that squashes root has set its own owner already."""
        if os.geteuid() == 0:
            owner = self._root.stat()
            with suppress(PermissionError):
                os.chown(path, owner.st_uid, owner.st_gid)

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        """Yield all objects except files that are being written."""
        with self._translate_errors():
            for parent, _, names in os.walk(self._path(folder)):
                for name in sorted(names):
                    if not name.endswith(TEMP_SUFFIX):
                        yield from self._stat(Path(parent, name))

    def list_folders(self, folder: str) -> Iterator[str]:
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
        """Delete an object and the folders that become empty."""
        with self._translate_errors():
            self._unlink(self._path(key))

    def sweep(self, modified_before: float) -> None:
        with self._translate_errors():
            for path in list(self._path("").rglob(f".*{TEMP_SUFFIX}")):
                if any(temporary.modified_at < modified_before for temporary in self._stat(path)):
                    self._unlink(path)

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self._root or not _remove_if_empty(folder):
                break

    def get_reader_factory(self, folder: str) -> OpenReader:
        return lambda: self._open_reader(folder)

    @contextmanager
    def _open_reader(self, folder: str) -> Iterator[_FolderReader]:
        yield _FolderReader(self, folder)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of an object.

        Raises SourceNotFound and SourceChanged in addition to the errors of a Backend.
        """
        with self._translate_errors():
            try:
                with self._path(key).open("rb", buffering=0) as stream:
                    done = os.preadv(stream.fileno(), [buffer], offset)
            except FileNotFoundError as error:
                raise SourceNotFound(f"{self.display_name} does not have {key} any more") from error
        if done != len(buffer):
            raise SourceChanged(f"{self.display_name}: {key} is shorter than when it was written")

    def _path(self, key: str) -> Path:
        if not self._root.is_dir():
            raise OriginUnavailable(
                f"{self.display_name}, the image store, does not exist; mount it on this node, "
                "at the same path in the plugin's container"
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
            return NoSpace(f"{self.display_name}, the image store, is full; add space, or keep fewer caches")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return PermissionDenied(
                f"{self.display_name}, the image store, denies access ({error.strerror}); "
                "give this driver's user the rights"
            )
        return OriginUnavailable(f"{self.display_name}, the image store, cannot be used: {error.strerror}")


class _FolderReader(Reader):
    """Reader of objects as files."""

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
