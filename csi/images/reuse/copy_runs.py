"""Bytes from one image to another without the origin: shared where the file system can, else copied by the kernel, else by hand."""

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

# FICLONERANGE of <linux/fs.h>: _IOW(0x94, 13, struct file_clone_range), whose fields are file, offset, length, and offset there.
_CLONE_RANGE = 0x4020940D
_clone_range = struct.Struct("=qQQQ")
_CLONE_BYTES = 256 * 1024 * 1024
_COPY_BYTES = 16 * 1024 * 1024
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF, errno.ETXTBSY)


def shares_extents(donor: Path, folder: Path) -> bool:
    """Whether files in `folder` can share blocks with the file `donor`: found out by a nameless file that does."""
    try:
        with ExitStack() as opened:
            source, probe = os.open(donor, os.O_RDONLY | os.O_CLOEXEC), -1
            opened.callback(os.close, source)
            probe = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, probe)
            return _clone(source, probe, 0, 0, BLOCK) == BLOCK
    except OSError:
        return False


class Copier:
    """Copies ranges of other images into the file at `path`. All methods raise OSError. For one thread."""

    def __init__(self, path: Path) -> None:
        self._target = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._sources: dict[Path, int] = {}
        self._ways = [_clone, _copy_in_kernel, _copy_by_hand]
        self._cached: set[int] = set()

    def copy(self, donor: Path, source: int, target: int, length: int) -> Iterator[int]:
        """Bring `length` bytes from byte `source` of `donor` to byte `target`, all multiples of 4096; the bytes of each step."""
        opened = self._opened(donor)
        while length:
            done = self._step(opened, source, target, length)
            source, target, length = source + done, target + done, length - done
            yield done

    def sync(self) -> None:
        """Return when what was copied is on disk; what the page cache has of it, on either side, is let go."""
        os.fdatasync(self._target)
        for file in self._cached:
            # Of all of it: the kernel reads ahead of what was asked for.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _step(self, source: int, at: int, target: int, length: int) -> int:
        while True:
            try:
                done = self._ways[0](source, self._target, at, target, length)
                break
            except OSError as error:
                if error.errno not in _CANNOT or len(self._ways) == 1:
                    raise
                self._ways.pop(0)
        if done == 0:
            raise OSError(errno.EIO, "an image ends early")
        if self._ways[0] is not _clone:
            self._cached |= {source, self._target}
        return done

    def _opened(self, donor: Path) -> int:
        if donor not in self._sources:
            self._sources[donor] = os.open(donor, os.O_RDONLY | os.O_CLOEXEC)
        return self._sources[donor]

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in (self._target, *self._sources.values()):
            os.close(file)


def _clone(source: int, target: int, at: int, to: int, length: int) -> int:
    length = min(length, _CLONE_BYTES)
    fcntl.ioctl(target, _CLONE_RANGE, _clone_range.pack(source, at, length, to))
    return length


def _copy_in_kernel(source: int, target: int, at: int, to: int, length: int) -> int:
    return os.copy_file_range(source, target, min(length, _COPY_BYTES), at, to)


def _copy_by_hand(source: int, target: int, at: int, to: int, length: int) -> int:
    return os.pwrite(target, os.pread(source, min(length, _COPY_BYTES), at), to)
