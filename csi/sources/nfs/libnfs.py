"""A ctypes binding of libnfs.

One `NfsContext` is one connection with one mounted export, for one thread at a time. libnfs 4.0
(libnfs.so.13, Debian 12) and 5.x (libnfs.so.14, Debian 13) have the same functions and structures
(include/nfsc/libnfs.h); later versions changed the order of arguments and are not supported. The library is
loaded with the first context. ctypes releases the interpreter lock during every call. Run as root, libnfs
binds a source port below 1024, which exports marked `secure` require.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import select
import stat
import struct
import uuid
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

from csi.errors import UnsupportedByNode

# Bytes of one READ call; 1 MiB is the common maximum of servers (rtmax).
MAX_READ_BYTES = 1 << 20
_SONAMES = ("libnfs.so.13", "libnfs.so.14")
# Asynchronous calls sent before waiting for answers.
_MAX_IN_FLIGHT = 64
# struct nfsdirent: next, name, inode, type, mode, size, three timevals, uid, gid, nlink, dev, rdev, blksize,
# blocks, used, three nanoseconds.
_DIRENT = struct.Struct("@PPQIIQ6l3I5Q3I")
# struct nfs_stat_64: dev, ino, mode, nlink, uid, gid, rdev, size, blksize, blocks, three times, three
# nanoseconds, used.
_STAT = struct.Struct("@10Q3q4Q")
# ftype3 (RFC 1813, 2.6), which nfs_ftype4 shares (RFC 7530, 2.1).
_FILE_TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFBLK,
    4: stat.S_IFCHR,
    5: stat.S_IFLNK,
    6: stat.S_IFSOCK,
    7: stat.S_IFIFO,
}
_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_void_p, c_void_p, c_void_p)
_T = TypeVar("_T")


class NfsError(Exception):
    """A failed libnfs call.

    `code` is a positive errno, `text` libnfs's message, which names the NFS status if any.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class FileAttributes(NamedTuple):
    """Attributes of a file: `file_type` is the S_IFMT part (0: unknown), `mode` the 12 permission bits.

    Times are in nanoseconds, the size in bytes.
    """

    file_type: int
    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    file_id: int


@dataclass(frozen=True)
class ContextOptions:
    """Options of a context: `version` 3 or 4, TCP ports, AUTH_SYS ids, and seconds that a call may take.

    Port 0 means the portmapper's or the well-known one.
    """

    version: int
    port: int
    mount_port: int
    uid: int
    gid: int
    timeout: float


@cache
def _load_library() -> ctypes.CDLL:
    for name in _SONAMES:
        try:
            return _declare(ctypes.CDLL(name))
        except OSError:
            continue
    raise UnsupportedByNode(
        "this node lacks libnfs 4 or 5, which reads NAS sources; "
        "install the Debian package libnfs13 (libnfs14 on Debian 13)"
    )


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    handle, text, status = c_void_p, c_char_p, c_int
    signatures: dict[str, tuple[object, list[object]]] = {
        "nfs_init_context": (handle, []),
        "nfs_destroy_context": (None, [handle]),
        "nfs_get_error": (text, [handle]),
        "nfs_get_fd": (status, [handle]),
        "nfs_which_events": (status, [handle]),
        "nfs_service": (status, [handle, status]),
        "nfs_parse_url_incomplete": (handle, [handle, text]),
        "nfs_destroy_url": (None, [handle]),
        "nfs_set_uid": (None, [handle, status]),
        "nfs_set_gid": (None, [handle, status]),
        "nfs_set_timeout": (None, [handle, status]),
        "nfs_set_autoreconnect": (None, [handle, status]),
        "nfs_set_tcp_syncnt": (None, [handle, status]),
        "nfs_set_dircache": (None, [handle, status]),
        "nfs4_set_client_name": (None, [handle, text]),
        "nfs4_set_verifier": (None, [handle, text]),
        "nfs_mount": (status, [handle, text, text]),
        "nfs_opendir": (status, [handle, text, POINTER(c_void_p)]),
        "nfs_readdir": (handle, [handle, handle]),
        "nfs_closedir": (None, [handle, handle]),
        "nfs_lstat64_async": (status, [handle, text, _CALLBACK, handle]),
        "nfs_readlink_async": (status, [handle, text, _CALLBACK, handle]),
        "nfs_open": (status, [handle, text, status, POINTER(c_void_p)]),
        "nfs_fstat64": (status, [handle, handle, handle]),
        "nfs_pread": (status, [handle, handle, c_uint64, c_uint64, handle]),
        "nfs_close": (status, [handle, handle]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class NfsContext:
    """One connection. All methods except `close` raise `NfsError`.

    After an error that satisfies `csi.sources.nfs.client.is_connection_lost`, only `close` may be called.
    """

    def __init__(self, options: ContextOptions) -> None:
        self._lib = _load_library()
        self._options = options
        self._nfs: int | None = self._lib.nfs_init_context()
        if not self._nfs:
            raise MemoryError("libnfs could not create a context")
        self._callbacks: list[object] = []
        self._configure(options)

    def _configure(self, options: ContextOptions) -> None:
        arguments = {
            "version": options.version,
            "nfsport": options.port,
            "mountport": options.mount_port,
            # Do not cross into nested exports, which are other file systems.
            "auto-traverse-mounts": 0,
        }
        url = "nfs://server/?" + "&".join(
            f"{key}={value}" for key, value in arguments.items() if value or "port" not in key
        )
        self._lib.nfs_destroy_url(self._lib.nfs_parse_url_incomplete(self._nfs, url.encode()))
        seconds = max(1, math.ceil(options.timeout))
        self._lib.nfs_set_timeout(self._nfs, seconds * 1000)
        # A lost connection is replaced by a new context (NfsConnection): libnfs's own reconnect would replay
        # calls with handles that the server may have forgotten, without a limit in time. n SYN retries take
        # 2^n - 1 seconds in total.
        self._lib.nfs_set_tcp_syncnt(self._nfs, max(1, math.ceil(math.log2(seconds + 1))))
        self._lib.nfs_set_autoreconnect(self._nfs, 0)
        self._lib.nfs_set_dircache(self._nfs, 0)
        self._lib.nfs_set_uid(self._nfs, options.uid)
        self._lib.nfs_set_gid(self._nfs, options.gid)
        if options.version == 4:
            # To the server, contexts with the same name or verifier are one client, and end each other's
            # leases (NFS4ERR_EXPIRED).
            self._lib.nfs4_set_client_name(self._nfs, f"datacache {uuid.uuid4()}".encode())
            self._lib.nfs4_set_verifier(self._nfs, os.urandom(8))

    def mount(self, server: str, export: str) -> None:
        """Connect and mount `export`; on a v3 server any folder below an export may work too."""
        self._check(self._lib.nfs_mount(self._live_handle, server.encode(), export.encode()))

    def list_folder(self, path: bytes) -> list[tuple[bytes, FileAttributes]]:
        """Return names and attributes in the folder, without '.' and '..', in the server's order.

        NFSv3 returns all attributes with the names (READDIRPLUS). libnfs loses the file ids of NFSv4
        listings, so `file_id` is 0 there.
        """
        folder = c_void_p()
        self._check(self._lib.nfs_opendir(self._live_handle, path, byref(folder)))
        try:
            return self._read_entries(folder)
        finally:
            self._lib.nfs_closedir(self._live_handle, folder)

    def _read_entries(self, folder: c_void_p) -> list[tuple[bytes, FileAttributes]]:
        entries: list[tuple[bytes, FileAttributes]] = []
        has_ids = self._options.version == 3
        entry = self._lib.nfs_readdir(self._live_handle, folder)
        while entry:
            fields = _DIRENT.unpack(ctypes.string_at(entry, _DIRENT.size))
            name = ctypes.string_at(fields[1])
            if name not in (b".", b".."):
                entries.append((name, _parse_dirent(fields, has_ids)))
            entry = fields[0]
        return entries

    def stat_many(self, paths: Sequence[bytes]) -> list[FileAttributes]:
        """Return the attributes of each path (of symlinks themselves), with many calls in flight."""
        return self._call_many(self._lib.nfs_lstat64_async, paths, _parse_stat)

    def read_links(self, paths: Sequence[bytes]) -> list[bytes]:
        """Return the target of each symlink, with many calls in flight."""
        return self._call_many(self._lib.nfs_readlink_async, paths, ctypes.string_at)

    def open(self, path: bytes) -> int:
        """Open `path` for reading and return a handle; a symlink is refused (ELOOP)."""
        handle = c_void_p()
        self._check(self._lib.nfs_open(self._live_handle, path, os.O_RDONLY | os.O_NOFOLLOW, byref(handle)))
        return handle.value or 0

    def stat(self, handle: int) -> FileAttributes:
        """Query the current attributes of an open file."""
        buffer = ctypes.create_string_buffer(_STAT.size)
        self._check(self._lib.nfs_fstat64(self._live_handle, handle, ctypes.addressof(buffer)))
        return _parse_stat(ctypes.addressof(buffer))

    def read(self, handle: int, offset: int, buffer: memoryview) -> int:
        """Read into `buffer` (writable, contiguous) from byte `offset`.

        Return the bytes read, fewer only at the end.
        """
        if not buffer:
            return 0
        anchor = ctypes.c_char.from_buffer(buffer)
        address, done = ctypes.addressof(anchor), 0
        while done < len(buffer):
            count = min(MAX_READ_BYTES, len(buffer) - done)
            received = self._check(
                self._lib.nfs_pread(self._live_handle, handle, offset + done, count, address + done)
            )
            if received == 0:
                break
            done += received
        return done

    def close_file(self, handle: int) -> None:
        """Close an open file; with NFSv4 this is a call to the server."""
        self._check(self._lib.nfs_close(self._live_handle, handle))

    @property
    def descriptor(self) -> int:
        """The descriptor of the TCP socket (owned by libnfs)."""
        return int(self._lib.nfs_get_fd(self._live_handle))

    def close(self) -> None:
        """Close the connection at once, whatever its state."""
        if self._nfs:
            self._lib.nfs_destroy_context(self._nfs)
            self._nfs = None
            self._callbacks.clear()

    @property
    def _live_handle(self) -> int:
        # libnfs would crash the process on a null context.
        assert self._nfs, "this context is closed"
        return self._nfs

    def _check(self, status: int) -> int:
        if status < 0:
            text: bytes | None = self._lib.nfs_get_error(self._live_handle)
            raise NfsError(-status, (text or b"no reason given").decode(errors="replace"))
        return status

    def _call_many(
        self, call: Callable[..., int], paths: Sequence[bytes], convert: Callable[[int], _T]
    ) -> list[_T]:
        results: dict[int, _T] = {}
        failures: list[int] = []

        def on_complete(status: int, _nfs: int | None, data: int | None, index: int | None) -> None:
            if status < 0 or not data:
                failures.append(status or -errno.EIO)
            else:
                results[index or 0] = convert(data)

        callback = _CALLBACK(on_complete)
        # After a failure some calls are still in flight; libnfs invokes their callbacks when the context is
        # destroyed, so the callback must live as long as the context.
        self._callbacks.append(callback)
        sent = 0
        while len(results) < len(paths):
            while sent < len(paths) and sent - len(results) < _MAX_IN_FLIGHT:
                self._check(call(self._live_handle, paths[sent], callback, sent))
                sent += 1
            self._process_events()
            if failures:
                self._check(failures[0])
        self._callbacks.remove(callback)
        return [results[index] for index in range(len(paths))]

    def _process_events(self) -> None:
        poll = select.poll()
        poll.register(self.descriptor, self._lib.nfs_which_events(self._live_handle))
        # libnfs only checks for timeouts in nfs_service, so that is called regularly even without an event.
        events = poll.poll(100)
        if self._lib.nfs_service(self._live_handle, events[0][1] if events else 0) < 0:
            self._check(-errno.EIO)


def _parse_dirent(fields: tuple[int, ...], has_id: bool) -> FileAttributes:
    mtime_ns = fields[8] * 10**9 + fields[21]
    return FileAttributes(
        _FILE_TYPES.get(fields[3], 0),
        fields[4] & 0o7777,
        fields[5],
        mtime_ns,
        fields[12],
        fields[13],
        fields[2] if has_id else 0,
    )


def _parse_stat(address: int) -> FileAttributes:
    fields = _STAT.unpack(ctypes.string_at(address, _STAT.size))
    mtime_ns = fields[11] * 10**9 + fields[14]
    return FileAttributes(
        stat.S_IFMT(fields[2]), fields[2] & 0o7777, fields[7], mtime_ns, fields[4], fields[5], fields[1]
    )
