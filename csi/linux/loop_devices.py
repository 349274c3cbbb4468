"""Loop devices: image files as read-only block devices with direct I/O."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from csi.errors import DataCacheError, UnsupportedByNode
from csi.linux.uevents import BlockUevents

log = logging.getLogger("datacache.loop")

# From <linux/loop.h> and <linux/fs.h>.
_LOOP_SET_DIRECT_IO, _LOOP_GET_STATUS64, _LOOP_CONFIGURE = 0x4C08, 0x4C05, 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_BLKRASET = 0x1262
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_BLOCK_SIZE = 4096
# struct loop_info64: device, inode, rdevice, offset, sizelimit (u64 each), number, encrypt type, key size,
# flags
# (u32 each), file name, crypt name, encrypt key, init.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: fd, block size, info, reserved.
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
# Other programs compete for free devices; each lost race costs one try.
_MAX_TRIES = 64
_MIN_READ_AHEAD = 2 * 2**20


class LoopDevices(Protocol):
    """Attaches image files to loop devices."""

    def attach(self, image: Path, read_ahead: int | None = None) -> AbstractContextManager[str]:
        """Attach `image` to a fresh read-only device for the block, and give its path, such as /dev/loop7.

        The device frees itself unless something (a mount) holds it at the end of the block. `read_ahead` is
        the kernel's read-ahead on the device in bytes; None for these devices' default.

        Raises UnsupportedByNode if the node has no loop devices, DataCacheError if the kernel rejects the
        image.
        """

    def set_read_ahead(self, device: str, size: int | None) -> None:
        """Set the read-ahead of `device` to `size` bytes; None for these devices' default."""

    def is_backed_by(self, device: str, image: Path) -> bool:
        """Return whether `device` is a loop device over `image`.

        Files are compared by device and inode, since the kernel cuts names at 64 bytes.
        """

    def wait_until_free(self, device: str, seconds: float) -> bool:
        """Wait until `device` is free, at most `seconds`; return False if it is still in use."""


class KernelLoopDevices(LoopDevices):
    """Loop devices of this machine. `read_ahead_bytes` is their default read-ahead."""

    def __init__(self, read_ahead_bytes: int) -> None:
        self._read_ahead = read_ahead_bytes
        self._uevents = BlockUevents()

    @contextmanager
    def attach(self, image: Path, read_ahead: int | None = None) -> Iterator[str]:
        # Autoclear, so that a plugin killed before the mount leaves no device behind.
        backing = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            device, path = self._configure(backing, image, read_ahead or self._read_ahead)
        finally:
            os.close(backing)
        try:
            yield path
        finally:
            os.close(device)

    def _configure(self, backing: int, image: Path, read_ahead: int) -> tuple[int, str]:
        # All other fields stay 0: no offset, no size limit, no encryption.
        info = _INFO.pack(
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            _READ_ONLY | _AUTOCLEAR | _DIRECT_IO,
            os.fsencode(image)[-63:],
            b"",
            b"",
            0,
            0,
        )
        config = _CONFIG.pack(backing, _BLOCK_SIZE, info)
        for _ in range(_MAX_TRIES):
            path = _find_free_device()
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                _apply_settings(device, path, read_ahead)
                return device, path
            except OSError as error:
                os.close(device)
                # EBUSY: another process has configured the device since LOOP_CTL_GET_FREE.
                if error.errno != errno.EBUSY:
                    raise DataCacheError(
                        f"the kernel refuses {image} as a loop device: {error.strerror}"
                    ) from error
        raise DataCacheError(
            f"no free loop device in {_MAX_TRIES} tries; another program takes them all: stop it"
        )

    def set_read_ahead(self, device: str, size: int | None) -> None:
        # A device that is gone, or does not support it, is left as it is.
        try:
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            _set_read_ahead(descriptor, device, size or self._read_ahead)
        finally:
            os.close(descriptor)

    def is_backed_by(self, device: str, image: Path) -> bool:
        try:
            status, expected = _read_status_of(device), image.stat()
        except FileNotFoundError:
            return False
        return status is not None and (status[0], status[1]) == (expected.st_dev, expected.st_ino)

    def wait_until_free(self, device: str, seconds: float) -> bool:
        return self._uevents.wait_for(lambda: _read_status_of(device) is None, seconds)


def default_read_ahead(folder: Path, bdi: Path = Path("/sys/class/bdi")) -> int:
    """Return the kernel's read-ahead, in bytes, of the disk below `folder`.

    It is at least 2 MiB, since an image is read through two devices.
    """
    number = folder.stat().st_dev
    setting = bdi / f"{os.major(number)}:{os.minor(number)}" / "read_ahead_kb"
    disk_read_ahead = int(setting.read_text()) * 1024 if setting.exists() else 0
    return max(disk_read_ahead, _MIN_READ_AHEAD)


def _apply_settings(device: int, path: str, read_ahead: int) -> None:
    if not _read_status(device)[8] & _DIRECT_IO:
        try:
            fcntl.ioctl(device, _LOOP_SET_DIRECT_IO, 1)
        except OSError:
            log.warning(
                "no direct I/O in 4 KiB blocks on the store's disk; reads are slower",
                extra={"fields": {"device": path}},
            )
    _set_read_ahead(device, path, read_ahead)


def _set_read_ahead(device: int, path: str, size: int) -> None:
    try:
        fcntl.ioctl(device, _BLKRASET, size // 512)
    except OSError as error:
        log.warning("read-ahead not set", extra={"fields": {"device": path, "reason": error.strerror}})


def _find_free_device() -> str:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedByNode(
            f"this node has no loop devices (/dev/loop-control: {error.strerror}); "
            "load the kernel module loop"
        ) from error
    try:
        return f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
    finally:
        os.close(control)


def _read_status(device: int) -> tuple[int, ...]:
    return _INFO.unpack(fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_INFO.size)))


def _read_status_of(path: str) -> tuple[int, ...] | None:
    """Return the status of a loop device, or None if it is free or gone."""
    try:
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # ENXIO: no file is attached to the device.
    except OSError:
        return None
    try:
        return _read_status(device)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    finally:
        os.close(device)
