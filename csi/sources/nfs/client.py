"""NFS transport: connections to one folder of a server, the meaning of its errors, and retries.

`NfsFolder` finds the spec's folder on its server. `NfsConnection` is one mounted context for one thread,
replaced after a call that timed out or a connection that broke. A server that is dead or hangs costs at most
timeout x (retries + 1) seconds and then raises OriginUnavailable.
"""

from __future__ import annotations

import errno
import posixpath
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from csi.errors import DataCacheError, InvalidParameter, OriginUnavailable, PermissionDenied, SourceNotFound
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.export_list import list_exports
from csi.sources.nfs.libnfs import ContextOptions, FileAttributes, NfsContext, NfsError

_PORTMAPPER_PORT, _NFS_PORT = 111, 2049
_ACCESS_ERRNOS = (errno.EACCES, errno.EPERM)
_NOT_FOUND_ERRNOS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# libnfs reports a call that timed out (RPC_STATUS_TIMEOUT) as EINTR.
_TIMEOUT_ERRNO = errno.EINTR
_STATUS_NAME = re.compile(r"(?:NFS3|NFS4|MNT3)ERR_\w+")
# State that a server may forget (a lease of 90 seconds, a removed file, a restart). A new connection restores
# it, or finds the file missing.
_STATE_LOST_STATUSES = {
    *("NFS3ERR_STALE", "NFS4ERR_STALE", "NFS4ERR_EXPIRED", "NFS4ERR_STALE_CLIENTID"),
    *("NFS4ERR_STALE_STATEID", "NFS4ERR_OLD_STATEID", "NFS4ERR_BAD_STATEID"),
}
_RETRY_LATER_REASONS = {
    "NFS4ERR_GRACE": "has just started and lets its earlier clients in first (about 90 s)",
    "NFS4ERR_DELAY": "asks to try again later",
    "NFS3ERR_JUKEBOX": "asks to try again later",
}
_T = TypeVar("_T")


def get_status_name(failure: NfsError) -> str:
    """Return the NFS or MOUNT status in the server's answer, "" if it did not answer."""
    match = _STATUS_NAME.search(failure.text)
    return match.group() if match else ""


def is_connection_lost(failure: NfsError) -> bool:
    """Return whether the connection is unusable: a timeout, a broken socket, forgotten NFSv4 state."""
    status = get_status_name(failure)
    if not status:
        # libnfs reports any failed call without an NFS status as EFAULT. Two of these are no lost connection,
        # and their callers test for them first: a rejected call (`_raise_unless_path_refused`) and a read of
        # a folder (`NasReader`).
        return failure.code in (_TIMEOUT_ERRNO, errno.EIO, errno.EFAULT)
    return status in _STATE_LOST_STATUSES


class NfsFolder:
    """The folder of a spec on its server.

    The export to mount is determined once for all connections of a source.
    """

    def __init__(self, spec: NasSpec) -> None:
        self.spec = spec
        self.path = posixpath.normpath("/" + spec.path.strip("/"))
        self._export: str | None = None
        self._has_no_symlinks = self.path == "/"

    def connect(self) -> tuple[NfsContext, bytes]:
        """Return a context with an export mounted, and the folder's path below it.

        The path is "" or starts with '/'. Raises SourceNotFound, PermissionDenied, OriginUnavailable, or an
        `NfsError` that satisfies `is_connection_lost`, after which a retry may help.
        """
        self._check_ports()
        # If all candidates fail, the first one's error is the most specific: it is about the folder itself.
        first_failure: NfsError | None = None
        for export in self._iter_candidate_exports():
            try:
                context = self._mount(export)
            except NfsError as failure:
                self._raise_unless_path_refused(failure)
                first_failure = first_failure or failure
            else:
                self._export = export
                self._check_no_symlinks(context)
                return context, self.path[len(export.rstrip("/")) :].encode()
        assert first_failure
        raise self._mount_error(first_failure) from first_failure

    def _iter_candidate_exports(self) -> Iterator[str]:
        """Yield the exports to try: the last one that worked, the folder itself, then (NFSv3) its parents.

        NFSv3 mounts exports, and on most servers also folders below them.
        """
        path = self.path
        if self._export:
            yield self._export
        yield path
        while self.spec.version == "3" and path != "/":
            path = posixpath.dirname(path)
            yield path

    def _check_no_symlinks(self, context: NfsContext) -> None:
        """Raise InvalidParameter, closing `context`, if the path goes through a symlink.

        Otherwise, whoever may name one folder could reach any other. The components are checked from the
        highest folder that can be mounted; if only the path itself can, it is an export, and the server's
        administrator chose its components.
        """
        try:
            for top in () if self._has_no_symlinks else self._iter_top_folders():
                if self._try_check_from(top):
                    break
        except BaseException:
            context.close()
            raise
        self._has_no_symlinks = True

    def _iter_top_folders(self) -> Iterator[str]:
        """Yield the folders to check from.

        NFSv4 always has a root; with NFSv3 any folder above the path may be the export.
        """
        yield "/"
        parts = self.path.strip("/").split("/")
        for count in range(1, len(parts) if self.spec.version == "3" else 1):
            yield "/" + "/".join(parts[:count])

    def _try_check_from(self, top: str) -> bool:
        """Mount `top` and check each component of the path below it.

        Raises InvalidParameter for a symlink. Returns False if `top` cannot be mounted, so that the next
        folder is tried.
        """
        try:
            context = self._mount(top)
        except NfsError as failure:
            self._raise_unless_path_refused(failure)
            if self.spec.version != "3":
                raise self._mount_error(failure) from failure
            return False
        parts = self.path[len(top.rstrip("/")) :].strip("/").split("/")
        paths = ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        with closing(context):
            for path, attributes in zip(paths, self._stat_paths(context, paths), strict=False):
                if attributes.file_type == stat.S_IFLNK:
                    link = top.rstrip("/") + path
                    raise InvalidParameter(
                        f"path is {self.path!r}, and {link!r} on the server is a symlink; "
                        "give the folder it points to"
                    )
        return True

    def _stat_paths(self, context: NfsContext, paths: list[str]) -> list[FileAttributes]:
        try:
            return context.stat_many([path.encode() for path in paths])
        except NfsError as failure:
            self._raise_unless_path_refused(failure)
            if failure.code in _NOT_FOUND_ERRNOS:
                return []  # reading the path raises the error
            raise self._mount_error(failure) from failure

    def _raise_unless_path_refused(self, failure: NfsError) -> None:
        """Return if the server did not find or forbade this path, so that another one may be tried.

        Raises PermissionDenied if it rejects every call of this node, the failure itself if the connection is
        lost, else OriginUnavailable.
        """
        # For a call that the server's RPC layer rejects (AUTH_ERROR, RFC 5531) libnfs has no text: it says
        # "(null)", from version 6 on nothing after the colon.
        if failure.code == errno.EFAULT and failure.text.rstrip().endswith(("(null)", ":")):
            raise PermissionDenied(
                f"{self.spec.display_name}: the server {self.spec.server} denies every call of this node; "
                "it may require a source port below 1024 "
                "(this driver has to run as root, without a NAT between) "
                "or another security flavour than sec=sys"
            ) from failure
        if is_connection_lost(failure):
            raise failure
        if failure.code not in (*_ACCESS_ERRNOS, *_NOT_FOUND_ERRNOS):
            raise unavailable_error(self.spec, failure) from failure

    def _mount(self, export: str) -> NfsContext:
        spec = self.spec
        context = NfsContext(
            ContextOptions(
                3 if spec.version == "3" else 4, spec.port, spec.mount_port, spec.uid, spec.gid, spec.timeout
            )
        )
        try:
            context.mount(spec.server, export)
        except BaseException:
            context.close()
            raise
        return context

    def _check_ports(self) -> None:
        """Connect to the required ports first.

        libnfs reports neither which port refused nor that a name has no address.
        """
        spec, v3 = self.spec, self.spec.version == "3"
        ports = {spec.port or (_PORTMAPPER_PORT if v3 else _NFS_PORT)} | (
            {spec.mount_port or _PORTMAPPER_PORT} if v3 else set()
        )
        for port in sorted(ports):
            try:
                socket.create_connection((spec.server, port), spec.timeout).close()
            except (OSError, UnicodeError) as error:
                raise OriginUnavailable(
                    f"{spec.display_name}: {_explain_unreachable(spec.server, port, error)}"
                ) from error

    def _mount_error(self, failure: NfsError) -> DataCacheError:
        spec = self.spec
        listed_export = self._find_listed_export()
        if listed_export or (spec.version != "3" and failure.code in _ACCESS_ERRNOS):
            return PermissionDenied(
                f"{spec.display_name}: the server does not let this node mount the export "
                f"{listed_export or self.path!r} as uid {spec.uid} "
                f"({get_status_name(failure) or failure.text}); "
                "allow the node's address and sec=sys in the export's access list"
            )
        return SourceNotFound(
            f"{spec.display_name}: the server {spec.server} has no export or folder {self.path!r}, "
            "or does not show it to this node; check `path` against the server's export list"
        )

    def _find_listed_export(self) -> str | None:
        if self.spec.version != "3":
            return None
        try:
            exports = list_exports(self.spec.server, self.spec.mount_port, self.spec.timeout)
        except OSError:
            return None
        return next((e for e in exports if self.path == e or self.path.startswith(e.rstrip("/") + "/")), None)


class NfsConnection:
    """A mounted context, created on first use and replaced when it is lost. For one thread at a time.

    `relative_path` is the folder's path below the mounted export, valid within `run_with_retry`.
    """

    def __init__(self, folder: NfsFolder) -> None:
        self.folder = folder
        self.relative_path = b""
        self._context: NfsContext | None = None

    def run_with_retry(self, work: Callable[[NfsContext], _T]) -> _T:
        """Return the result of `work`, which is restarted on a new connection if the old one is lost.

        Timeouts are retried as often as the spec's `retries` allow, broken connections at least once. Raises
        the errors of `NfsFolder.connect`, OriginUnavailable, and `NfsError` if the server answered and
        refused.
        """
        spec, retries = self.folder.spec, 0
        while True:
            try:
                return work(self._get_context())
            except NfsError as failure:
                if not is_connection_lost(failure):
                    raise
                self.close()
                # Servers drop idle connections and leases, so a broken connection says nothing about the next
                # one.
                if retries >= (spec.retries if failure.code == _TIMEOUT_ERRNO else max(1, spec.retries)):
                    raise unavailable_error(spec, failure) from failure
                retries += 1

    def is_current(self, context: NfsContext | None) -> bool:
        """Return whether `context` is the one in use now; handles of any other are invalid."""
        return context is not None and context is self._context

    def _get_context(self) -> NfsContext:
        if self._context is None:
            self._context, self.relative_path = self.folder.connect()
        return self._context

    def close(self) -> None:
        """Close the connection and everything open on it."""
        if self._context is not None:
            self._context.close()
            self._context = None


def unavailable_error(spec: NasSpec, failure: NfsError) -> OriginUnavailable:
    """Create the error for a server without a usable answer."""
    reason = _RETRY_LATER_REASONS.get(get_status_name(failure))
    if reason:
        return OriginUnavailable(f"{spec.display_name}: the NFS server {spec.server} {reason}")
    if failure.code == _TIMEOUT_ERRNO:
        return OriginUnavailable(
            f"{spec.display_name}: the NFS server {_format_server(spec)} "
            f"did not answer within {spec.timeout:g} s, {spec.retries + 1} times"
        )
    return OriginUnavailable(
        f"{spec.display_name}: reading from the NFS server {_format_server(spec)} failed "
        f"({failure.text}, {_format_errno(failure.code)})"
    )


def path_error(spec: NasSpec, failure: NfsError, path: bytes) -> DataCacheError:
    """Create the error for a failure at `path`, a folder or file below the spec's path."""
    full_path = (
        posixpath.join(spec.path, path.decode(errors="backslashreplace").lstrip("/")).rstrip("/") or "/"
    )
    if failure.code in _ACCESS_ERRNOS:
        return PermissionDenied(
            f"{spec.display_name}: the server does not let uid {spec.uid}, gid {spec.gid} "
            f"read {full_path!r} ({get_status_name(failure) or failure.text}); "
            "let that user read it on the server, or set `uid` and `gid` of one who may "
            "(an export with root_squash takes uid 0 for nobody)"
        )
    if failure.code in _NOT_FOUND_ERRNOS:
        return SourceNotFound(
            f"{spec.display_name}: {full_path!r} is not a folder on the server "
            f"({get_status_name(failure) or failure.text}); check `path`"
        )
    return unavailable_error(spec, failure)


def _format_server(spec: NasSpec) -> str:
    return f"{spec.server}:{spec.port}" if spec.port else spec.server


def _format_errno(code: int) -> str:
    return errno.errorcode.get(code, str(code))


def _explain_unreachable(server: str, port: int, error: Exception) -> str:
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"the name {server!r} has no address; check `server` and the node's DNS"
    service = "the portmapper, which tells the ports of NFSv3" if port == _PORTMAPPER_PORT else "NFS"
    return (
        f"{server} does not accept connections on port {port} ({service}): {error}; "
        "check `server`, `port`, `mountport` and firewalls"
    )
