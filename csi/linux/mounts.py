"""The kernel's mount table, and the four changes this driver makes to it."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from csi.errors import Busy, DataCacheError, InvalidParameter, UnsupportedByNode

# From <linux/mount.h>.
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_READ_ONLY = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
_UMOUNT_NOFOLLOW = 8
# Enough for the root folder and nothing else (tmpfs(5)).
_MARKER_OPTIONS = "size=4k,nr_inodes=1,mode=0555"
# Most lines of the table are the same as at the last read, so their parsed form is cached.
_MAX_CACHED_LINES, _MAX_CACHED_OPTIONS = 1024, 64
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """Line of the mount table.

    `device` is "major:minor" of the super block; `shared` says whether mounts below it propagate.
    """

    target: str
    device: str
    fs_type: str
    source: str
    options: frozenset[str]
    shared: bool = False


class MountTable(Protocol):
    """Mount table of a mount namespace. Targets are absolute paths without symlinks."""

    def list_mounts(self) -> list[Mount]:
        """Return all mounts, oldest first; of several on one target the last is the visible one."""

    def mount_image(self, device: str, target: Path) -> None:
        """Mount the EROFS on a block device at the folder `target`, with ro, nosuid, nodev.

        Raises UnsupportedByNode, DataCacheError.
        """

    def bind_mount(self, source: Path, target: Path) -> None:
        """Bind the folder `source` to the folder `target`, with ro, nosuid, nodev. Raises DataCacheError."""

    def mount_marker(self, label: str, target: Path) -> None:
        """Mount an empty file system at the folder `target`, with `label` as its source.

        Its options are ro, nosuid, nodev, noexec. Raises DataCacheError.
        """

    def unmount(self, target: Path) -> None:
        """Remove the topmost mount at `target`; having none is no error.

        Raises Busy while it is in use.
        """


def find_mount(table: list[Mount], target: Path | str) -> Mount | None:
    """Return the visible mount at `target`, or None."""
    text = str(target)
    return next((mount for mount in reversed(table) if mount.target == text), None)


def find_mount_of_path(path: Path) -> Mount:
    """Return the mount that contains the existing `path`, in this process's mount namespace."""
    table, real_path = KernelMountTable().list_mounts(), Path(os.path.realpath(path))
    return next(mount for folder in (real_path, *real_path.parents) if (mount := find_mount(table, folder)))


def resolve_parent(path: Path) -> Path:
    """Return `path` as the mount table spells it, without symlinks above its last component.

    Raises InvalidParameter if it cannot be a mount point.
    """
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise InvalidParameter(f"{str(path)[:200]!r} is not an absolute path without '..' and NUL")
    return Path(os.path.realpath(path.parent)) / path.name


def selinux_mount_options(selinux: Path = Path("/sys/fs/selinux/enforce")) -> str:
    """Return mount options of an image.

    On SELinux hosts they set a label that containers may read, since a read-only image cannot be relabelled.
    """
    return 'context="system_u:object_r:container_file_t:s0"' if selinux.exists() else ""


class KernelMountTable(MountTable):
    """Mount table of this process's mount namespace."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._changed = threading.Condition()
        self._reads_started = self._reads_finished = 0
        self._last_table: list[Mount] = []

    def list_mounts(self) -> list[Mount]:
        """Read /proc/self/mountinfo in one go.

        While containers start, the kernel lets readers wait for its namespace lock, and a node of 200 pods
        has a thousand mounts. So one thread reads at a time, and calls that arrive meanwhile share the next
        read: no caller gets a table that was read before it called.
        """
        # A read in progress may have missed the caller's own changes; only the next one is good enough.
        with self._changed:
            next_read = self._reads_started + 1
            self._changed.wait_for(
                lambda: self._reads_finished >= next_read or self._reads_started == self._reads_finished
            )
            if self._reads_finished >= next_read:
                return self._last_table
            self._reads_started += 1
        try:
            table = self._read_mountinfo()
        except BaseException:
            with self._changed:
                # Let one of the waiting callers read instead.
                self._reads_started -= 1
                self._changed.notify_all()
            raise
        with self._changed:
            self._reads_finished, self._last_table = self._reads_started, table
            self._changed.notify_all()
        return table

    def _read_mountinfo(self) -> list[Mount]:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
            return [_parse_line(line) for line in stream.read().split("\n") if line]

    def mount_image(self, device: str, target: Path) -> None:
        try:
            self._mount(device, target, "erofs", _READ_ONLY, selinux_mount_options())
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                reason = f"this node's kernel cannot mount the image on {device} as EROFS ({error.strerror})"
                raise UnsupportedByNode(f"{reason}; it needs Linux 6.1 or newer with EROFS") from error
            raise DataCacheError(f"mounting {device} at {target} failed: {error.strerror}") from error

    def bind_mount(self, source: Path, target: Path) -> None:
        # A bind mount ignores the flags of its first mount(2); a remount sets them.
        try:
            self._mount(str(source), target, "none", _MS_BIND)
            self._mount("none", target, "none", _MS_BIND | _MS_REMOUNT | _READ_ONLY)
        except OSError as error:
            raise DataCacheError(f"binding {source} to {target} failed: {error.strerror}") from error

    def mount_marker(self, label: str, target: Path) -> None:
        try:
            self._mount(label, target, "tmpfs", _READ_ONLY | _MS_NOEXEC, _MARKER_OPTIONS)
        except OSError as error:
            raise DataCacheError(f"marking {target} failed: {error.strerror}") from error

    def unmount(self, target: Path) -> None:
        if self._libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW) == 0:
            return
        number = ctypes.get_errno()
        # EINVAL: nothing is mounted at the target.
        if number in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            return
        if number == errno.EBUSY:
            raise Busy(
                f"{target} is in use by a process on this node; it is unmounted after that process ends"
            )
        raise DataCacheError(f"unmounting {target} failed: {os.strerror(number)}")

    def _mount(self, source: str, target: Path, fs_type: str, flags: int, options: str = "") -> None:
        if (
            self._libc.mount(
                os.fsencode(source),
                os.fsencode(target),
                fs_type.encode(),
                ctypes.c_ulong(flags),
                options.encode() or None,
            )
            != 0
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


@lru_cache(maxsize=_MAX_CACHED_LINES)
def _parse_line(line: str) -> Mount:
    # proc_pid_mountinfo(5): id, parent, device, root, target, options, optional fields, '-', type, source,
    # super options.
    before, _, after = line.partition(" - ")
    fields, (fs_type, source, super_options) = before.split(" "), after.split(" ", 2)
    options = _split_options(fields[5], super_options)
    return Mount(
        _unescape(fields[4]),
        fields[2],
        fs_type,
        _unescape(source),
        options,
        any(field.startswith("shared:") for field in fields[6:]),
    )


@lru_cache(maxsize=_MAX_CACHED_OPTIONS)
def _split_options(*texts: str) -> frozenset[str]:
    return frozenset(option for text in texts for option in text.split(","))


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text
