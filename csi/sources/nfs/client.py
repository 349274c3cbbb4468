"""NFS as a transport: connections to one folder of a server, what its refusals mean, and how often to try again.

A `Place` is where a spec's folder is found on its server; a `Connection` is one mounted context for one thread, made
again after a call that timed out or a connection that broke: a server that is dead or hangs costs at most
timeout x (retries + 1) seconds and then is OriginUnavailable.
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
from csi.sources.nfs.export_list import exported_folders
from csi.sources.nfs.libnfs import Attributes, Context, Failure, Options

_PORTMAPPER_PORT, _NFS_PORT = 111, 2049
_REFUSED = (errno.EACCES, errno.EPERM)
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_TIMED_OUT = errno.EINTR
_STATUS = re.compile(r"(?:NFS3|NFS4|MNT3)ERR_\w+")
# What a server may forget (a lease of 90 seconds, a removed file, a restart): a new connection makes it new, or finds it missing.
_STATE_LOST = {
    *("NFS3ERR_STALE", "NFS4ERR_STALE", "NFS4ERR_EXPIRED", "NFS4ERR_STALE_CLIENTID"),
    *("NFS4ERR_STALE_STATEID", "NFS4ERR_OLD_STATEID", "NFS4ERR_BAD_STATEID"),
}
_LATER = {
    "NFS4ERR_GRACE": "has just started and lets its earlier clients in first (about 90 s)",
    "NFS4ERR_DELAY": "asks to try again later",
    "NFS3ERR_JUKEBOX": "asks to try again later",
}
_T = TypeVar("_T")


def status_name(failure: Failure) -> str:
    """The NFS or MOUNT status that the server answered with, "" when it answered nothing."""
    found = _STATUS.search(failure.text)
    return found.group() if found else ""


def lost(failure: Failure) -> bool:
    """Whether the connection is of no more use: a time-out, a broken socket, forgotten NFSv4 state."""
    status = status_name(failure)
    if not status:
        return failure.code in (_TIMED_OUT, errno.EIO, errno.EFAULT)
    return status in _STATE_LOST


class Place:
    """Where the folder of a spec is on its server: which export to mount for it is found once for all connections of a source."""

    def __init__(self, spec: NasSpec) -> None:
        self.spec = spec
        self.path = posixpath.normpath("/" + spec.path.strip("/"))
        self._export: str | None = None
        self._straight = self.path == "/"

    def connect(self) -> tuple[Context, bytes]:
        """A context with an export mounted, and the path of this place below it: "" or starting with '/'.

        Raises SourceNotFound, PermissionDenied, OriginUnavailable, or a `Failure` that is `lost`: trying again may help.
        """
        self._reach()
        first: Failure | None = None
        for export in self._candidates():
            try:
                context = self._mount(export)
            except Failure as failure:
                self._give_up_unless_refused(failure)
                first = first or failure
            else:
                self._export = export
                self._refuse_symlinks(context)
                return context, self.path[len(export.rstrip("/")) :].encode()
        assert first
        raise self._not_mounted(first) from first

    def _candidates(self) -> Iterator[str]:
        """NFSv3 mounts exports, and with most servers folders below them: what worked before, the folder itself, then its parents."""
        path = self.path
        if self._export:
            yield self._export
        yield path
        while self.spec.version == "3" and path != "/":
            path = posixpath.dirname(path)
            yield path

    def _refuse_symlinks(self, mounted: Context) -> None:
        """Raise InvalidParameter when the path goes through a symlink, closing `mounted`: whoever may name a folder could reach any other by one.

        The components are looked at from the highest folder that can be mounted; where only the path itself can, it is an
        export, and the server's administrator chose its components.
        """
        try:
            for top in () if self._straight else self._tops():
                if self._looked_at(top):
                    break
        except BaseException:
            mounted.close()
            raise
        self._straight = True

    def _tops(self) -> Iterator[str]:
        """NFSv4 always has a root; with NFSv3 any folder above the path may be the export."""
        yield "/"
        parts = self.path.strip("/").split("/")
        for count in range(1, len(parts) if self.spec.version == "3" else 1):
            yield "/" + "/".join(parts[:count])

    def _looked_at(self, top: str) -> bool:
        try:
            context = self._mount(top)
        except Failure as failure:
            self._give_up_unless_refused(failure)
            if self.spec.version != "3":
                raise self._not_mounted(failure) from failure
            return False
        parts = self.path[len(top.rstrip("/")) :].strip("/").split("/")
        below = ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        with closing(context):
            for path, found in zip(below, self._stats(context, below), strict=False):
                if found.format == stat.S_IFLNK:
                    through = top.rstrip("/") + path
                    raise InvalidParameter(f"path is {self.path!r}, and {through!r} on the server is a symlink; give the folder it points to")
        return True

    def _stats(self, context: Context, paths: list[str]) -> list[Attributes]:
        try:
            return context.stat_many([path.encode() for path in paths])
        except Failure as failure:
            self._give_up_unless_refused(failure)
            if failure.code in _MISSING:
                return []  # whoever reads the path next is told
            raise self._not_mounted(failure) from failure

    def _give_up_unless_refused(self, failure: Failure) -> None:
        # libnfs has no words for a call that the server's RPC layer denies (AUTH_ERROR, RFC 5531).
        if failure.code == errno.EFAULT and failure.text.endswith("(null)"):
            raise PermissionDenied(
                f"{self.spec.shown}: the server {self.spec.server} denies every call of this node; it may want a source port below 1024 "
                "(this driver has to run as root, without a NAT between) or another security flavour than sec=sys"
            ) from failure
        if lost(failure):
            raise failure
        if failure.code not in (*_REFUSED, *_MISSING):
            raise unavailable(self.spec, failure) from failure

    def _mount(self, export: str) -> Context:
        spec = self.spec
        context = Context(Options(3 if spec.version == "3" else 4, spec.port, spec.mount_port, spec.uid, spec.gid, spec.timeout))
        try:
            context.mount(spec.server, export)
        except BaseException:
            context.close()
            raise
        return context

    def _reach(self) -> None:
        """Connect to the ports that will be used: libnfs does not say which of them refused, or that a name has no address."""
        spec, v3 = self.spec, self.spec.version == "3"
        ports = {spec.port or (_PORTMAPPER_PORT if v3 else _NFS_PORT)} | ({spec.mount_port or _PORTMAPPER_PORT} if v3 else set())
        for port in sorted(ports):
            try:
                socket.create_connection((spec.server, port), spec.timeout).close()
            except (OSError, UnicodeError) as error:
                raise OriginUnavailable(f"{spec.shown}: {_unreachable(spec.server, port, error)}") from error

    def _not_mounted(self, failure: Failure) -> DataCacheError:
        spec = self.spec
        listed = self._listed_export()
        if listed or (spec.version != "3" and failure.code in _REFUSED):
            return PermissionDenied(
                f"{spec.shown}: the server does not let this node mount the export {listed or self.path!r} as uid {spec.uid} "
                f"({status_name(failure) or failure.text}); allow the node's address and sec=sys in the export's access list"
            )
        return SourceNotFound(
            f"{spec.shown}: the server {spec.server} has no export or folder {self.path!r}, or does not show it to this node; "
            "check `path` against the server's export list"
        )

    def _listed_export(self) -> str | None:
        if self.spec.version != "3":
            return None
        try:
            exports = exported_folders(self.spec.server, self.spec.mount_port, self.spec.timeout)
        except OSError:
            return None
        return next((e for e in exports if self.path == e or self.path.startswith(e.rstrip("/") + "/")), None)


class Connection:
    """A mounted context that is made on first use and again when it is lost; for one thread at a time.

    `below` is the path of the place below the mounted export, valid within `attempt`.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.below = b""
        self._context: Context | None = None

    def attempt(self, work: Callable[[Context], _T]) -> _T:
        """The result of `work`, begun anew on a new connection: after a time-out as often as the spec's `retries` allow, after a break at least once.

        Raises what `Place.connect` raises, OriginUnavailable, and `Failure` where the server answered and refused.
        """
        spec, again = self.place.spec, 0
        while True:
            try:
                return work(self._mounted())
            except Failure as failure:
                if not lost(failure):
                    raise
                self.close()
                # Servers drop idle connections and leases: a broken connection says nothing about the next one.
                if again >= (spec.retries if failure.code == _TIMED_OUT else max(1, spec.retries)):
                    raise unavailable(spec, failure) from failure
                again += 1

    def has(self, context: Context | None) -> bool:
        """Whether `context` is the one in use now; handles of any other are dead."""
        return context is not None and context is self._context

    def _mounted(self) -> Context:
        if self._context is None:
            self._context, self.below = self.place.connect()
        return self._context

    def close(self) -> None:
        """Drop the connection, with all that is open on it."""
        if self._context is not None:
            self._context.close()
            self._context = None


def unavailable(spec: NasSpec, failure: Failure) -> OriginUnavailable:
    """The error for a server that gave no usable answer."""
    reason = _LATER.get(status_name(failure))
    if reason:
        return OriginUnavailable(f"{spec.shown}: the NFS server {spec.server} {reason}")
    if failure.code == _TIMED_OUT:
        return OriginUnavailable(f"{spec.shown}: the NFS server {_address(spec)} did not answer within {spec.timeout:g} s, {spec.retries + 1} times")
    return OriginUnavailable(f"{spec.shown}: reading from the NFS server {_address(spec)} failed ({failure.text}, {_name(failure.code)})")


def refused(spec: NasSpec, failure: Failure, path: bytes) -> DataCacheError:
    """The error for a folder or file at `path` (below the spec's path) that the server answered for with a failure."""
    shown = posixpath.join(spec.path, path.decode(errors="backslashreplace").lstrip("/")).rstrip("/") or "/"
    if failure.code in _REFUSED:
        return PermissionDenied(
            f"{spec.shown}: the server does not let uid {spec.uid}, gid {spec.gid} read {shown!r} ({status_name(failure) or failure.text}); "
            "let that user read it on the server, or set `uid` and `gid` of one who may (an export with root_squash takes uid 0 for nobody)"
        )
    if failure.code in _MISSING:
        return SourceNotFound(f"{spec.shown}: {shown!r} is no folder on the server ({status_name(failure) or failure.text}); check `path`")
    return unavailable(spec, failure)


def _address(spec: NasSpec) -> str:
    return f"{spec.server}:{spec.port}" if spec.port else spec.server


def _name(code: int) -> str:
    return errno.errorcode.get(code, str(code))


def _unreachable(server: str, port: int, error: Exception) -> str:
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"the name {server!r} has no address; check `server` and the node's DNS"
    service = "the portmapper, which tells the ports of NFSv3" if port == _PORTMAPPER_PORT else "NFS"
    return f"{server} does not take connections on port {port} ({service}): {error}; check `server`, `port`, `mountport` and firewalls"
