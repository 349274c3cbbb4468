"""The partial image: a preallocated file, written in any order and without the page cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from csi.errors import DataCacheError, NoSpace
from csi.images.layout.chunks import CHUNK_BYTES
from csi.images.layout.erofs import align
from csi.linux.aligned_memory import AlignedBuffer
from csi.linux.durable_files import fsync_folder
from csi.values import format_size

_NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ByteRange = tuple[int, int]
"""Bytes of an image from the first offset up to, but not including, the second."""
# Without fallocate(2) the file stays sparse, and NoSpace may come in the middle of a fill.
_NO_FALLOCATE_ERRNOS = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class PartialImage:
    """An open image of `size` bytes at `path`; `write` and `read` are thread-safe.

    All methods raise NoSpace, stating both sizes, if the file system is full, and DataCacheError for its
    other errors.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._fd, self._is_direct = _open_direct(path)

    @staticmethod
    def create(path: Path, size: int, ranges: Iterable[ByteRange] | None = None) -> None:
        """Create a new file of mode 0600, replacing any other, with `ranges` of it allocated (None: all)."""
        path.unlink(missing_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, size)
                _allocate(fd, ((0, size),) if ranges is None else ranges)
                os.fsync(fd)
            finally:
                os.close(fd)
            fsync_folder(path.parent)
        except OSError as error:
            # Otherwise the blocks allocated before the file system was full would stay allocated.
            path.unlink(missing_ok=True)
            raise image_io_error(error, path, size) from error

    @staticmethod
    def allocate(path: Path, size: int, ranges: Iterable[ByteRange]) -> None:
        """Allocate the missing parts of these ranges of the file, keeping its contents."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                _allocate(fd, ranges)
            finally:
                os.close(fd)
        except OSError as error:
            raise image_io_error(error, path, size) from error

    @staticmethod
    def exists_with_size(path: Path, size: int) -> bool:
        """Return whether there is a partial image of exactly this size."""
        return path.is_file() and path.stat().st_size == size

    def write(self, offset: int, data: memoryview) -> None:
        """Write page-aligned `data` at image byte `offset`; offset and length are multiples of 4096."""
        try:
            while data:
                done = os.pwrite(self._fd, data, offset)
                offset, data = offset + done, data[done:]
        except OSError as error:
            raise image_io_error(error, self._path, self._size) from error

    def write_metadata(self, metadata: bytes) -> None:
        """Write `metadata` at offset 0 through an aligned buffer.

        Some file systems accept O_DIRECT in open(2) and fail with EINVAL on the first write; this is where
        that is detected.
        """
        view = AlignedBuffer(min(align(len(metadata)), CHUNK_BYTES)).view
        for offset in range(0, len(metadata), len(view)):
            part = metadata[offset : offset + len(view)]
            view[: len(part)] = part
            try:
                self.write(offset, view[: len(part)])
            except DataCacheError as error:
                if not (
                    self._is_direct
                    and isinstance(error.__cause__, OSError)
                    and error.__cause__.errno == errno.EINVAL
                ):
                    raise
                # Runs before the reading threads start, so nobody else uses the descriptor.
                os.close(self._fd)
                self._fd, self._is_direct = os.open(self._path, os.O_RDWR | os.O_CLOEXEC), False
                self.write(offset, view[: len(part)])

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (page-aligned, a multiple of 4096 long) from image byte `offset`."""
        try:
            while buffer:
                done = os.preadv(self._fd, [buffer], offset)
                if done == 0:
                    raise DataCacheError(
                        f"the partial image {self._path} ends early; remove it so that it is filled again"
                    )
                offset, buffer = offset + done, buffer[done:]
        except OSError as error:
            raise image_io_error(error, self._path, self._size) from error

    def sync(self) -> None:
        """Make everything written before durable."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise image_io_error(error, self._path, self._size) from error
        # Without O_DIRECT, drop the pages at least once they are clean.
        if not self._is_direct:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> PartialImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


# O_DIRECT keeps gigabytes of a fill from displacing the page cache of running pods. tmpfs and others lack it
# (EINVAL).
def _open_direct(path: Path) -> tuple[int, bool]:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags), False


def _allocate(fd: int, ranges: Iterable[ByteRange]) -> None:
    try:
        for begin, end in ranges:
            os.posix_fallocate(fd, begin, end - begin)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE_ERRNOS:
            raise


def image_io_error(error: OSError, path: Path, size: int) -> DataCacheError:
    """Translate an OSError about the image at `path`, which needs `size` bytes."""
    if error.errno in _NO_SPACE_ERRNOS:
        filesystem = os.statvfs(path.parent)
        free_text = format_size(filesystem.f_bavail * filesystem.f_frsize)
        return NoSpace(
            f"the image needs {format_size(size)}, "
            f"the file system of {path.parent} has {free_text} left ({error.strerror}); "
            "free or add space on the node"
        )
    return DataCacheError(
        f"the image {path} cannot be written or read: {error.strerror}; look at the node's disk"
    )
