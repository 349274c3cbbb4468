"""Copies between images without the origin.

Blocks are shared if possible, else copied by the kernel, else by reads and writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from csi.images.layout.erofs import BLOCK

# FICLONERANGE of <linux/fs.h>: _IOW(0x94, 13, struct file_clone_range), with the fields src_fd, src_offset,
# src_length and dest_offset.
_FICLONERANGE = 0x4020940D
_clone_range_struct = struct.Struct("=qQQQ")
# Bytes of one step, so that progress is reported and a stop noticed in time.
_MAX_CLONE_BYTES = 256 * 1024 * 1024
_MAX_COPY_BYTES = 16 * 1024 * 1024
# What file systems and older kernels answer if they do not support a method, or not between these two files.
_UNSUPPORTED_ERRNOS = (
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
)


def can_share_extents(source_path: Path, folder: Path) -> bool:
    """Return whether files in `folder` can share blocks with `source_path`.

    It is tried with a nameless file.
    """
    try:
        with ExitStack() as exit_stack:
            source, probe = os.open(source_path, os.O_RDONLY | os.O_CLOEXEC), -1
            exit_stack.callback(os.close, source)
            probe = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            exit_stack.callback(os.close, probe)
            return _clone(source, probe, 0, 0, BLOCK) == BLOCK
    except OSError:
        return False


class RunCopier:
    """Copier of ranges of other images into the file at `path`. All methods raise OSError. For one thread."""

    def __init__(self, path: Path) -> None:
        self._target = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._sources: dict[Path, int] = {}
        # Fastest first; one that the file system does not support is dropped for good.
        self._methods = [_clone, _copy_in_kernel, _copy_in_user_space]
        self._page_cached: set[int] = set()

    def copy(self, source_path: Path, source_offset: int, target_offset: int, length: int) -> Iterator[int]:
        """Copy `length` bytes between two files, yielding the bytes of each step.

        From byte `source_offset` of `source_path` to byte `target_offset`; all three are multiples of 4096.
        """
        source = self._open_source(source_path)
        while length:
            done = self._copy_step(source, source_offset, target_offset, length)
            source_offset, target_offset, length = source_offset + done, target_offset + done, length - done
            yield done

    def sync(self) -> None:
        """Make the copied bytes durable, and drop the page cache that the copies used."""
        os.fdatasync(self._target)
        for file in self._page_cached:
            # The whole file: the kernel has read ahead of the copied range.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _copy_step(self, source: int, source_offset: int, target_offset: int, length: int) -> int:
        while True:
            try:
                done = self._methods[0](source, self._target, source_offset, target_offset, length)
                break
            except OSError as error:
                if error.errno not in _UNSUPPORTED_ERRNOS or len(self._methods) == 1:
                    raise
                self._methods.pop(0)
        if done == 0:
            raise OSError(errno.EIO, "an image ends early")
        if self._methods[0] is not _clone:
            self._page_cached |= {source, self._target}
        return done

    def _open_source(self, source_path: Path) -> int:
        if source_path not in self._sources:
            self._sources[source_path] = os.open(source_path, os.O_RDONLY | os.O_CLOEXEC)
        return self._sources[source_path]

    def __enter__(self) -> RunCopier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._target, *self._sources.values()):
            os.close(file)


def _clone(source: int, target: int, source_offset: int, target_offset: int, length: int) -> int:
    length = min(length, _MAX_CLONE_BYTES)
    fcntl.ioctl(target, _FICLONERANGE, _clone_range_struct.pack(source, source_offset, length, target_offset))
    return length


def _copy_in_kernel(source: int, target: int, source_offset: int, target_offset: int, length: int) -> int:
    return os.copy_file_range(source, target, min(length, _MAX_COPY_BYTES), source_offset, target_offset)


def _copy_in_user_space(source: int, target: int, source_offset: int, target_offset: int, length: int) -> int:
    return os.pwrite(target, os.pread(source, min(length, _MAX_COPY_BYTES), source_offset), target_offset)
