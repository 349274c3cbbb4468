"""The tree of a NAS folder as manifest entries: one listing per folder, attributes with the names.

A file's digest is a token, since NFS tells no digest of the content: file id, size and mtime of the file, and the
server and path of the source, so that files of two sources never meet.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from csi.errors import DataCacheError, OriginUnavailable, UnsafeContent
from csi.manifest.manifest import Entry, Kind
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.client import Connection, refused
from csi.sources.nfs.libnfs import Attributes, Context, Failure

_SPECIAL = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a block device", stat.S_IFCHR: "a character device"}
_LAST_MTIME_NS = (1 << 63) - 1
_GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
_Listing = list[tuple[bytes, Attributes]]
# What decides, with the uid that asks, whether a file can be read: owner, group and mode of it and of the folders above.
_Rights = tuple[int, int, int]
RightsClass = tuple[frozenset[_Rights], _Rights]


def token(identity: str, attributes: Attributes) -> str:
    """The digest text of a file: changes when the file does, and differs between origins (`identity`)."""
    return f"token:nfs {attributes.file_id} {attributes.size} {attributes.mtime_ns} {identity}"


class Walk:
    """One walk over the folder of a connection; `samples` has, after it, one file of each class of rights that was met."""

    def __init__(self, connection: Connection, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        self.samples: dict[RightsClass, Entry] = {}

    def entries(self) -> Iterator[Entry]:
        """Every file, folder and symlink, the root left out.

        Raises SourceNotFound or PermissionDenied naming the folder, UnsafeContent naming a special file or a name that
        is not UTF-8, OriginUnavailable also when the tree changes under the walk.
        """
        waiting: list[tuple[str, frozenset[_Rights]]] = [("", frozenset())]
        while waiting:
            folder, rights = waiting.pop()
            for entry, attributes in self._children(folder):
                yield entry
                if entry.kind is Kind.DIRECTORY:
                    waiting.append((entry.path, rights | {_rights(attributes)}))
                elif entry.kind is Kind.FILE:
                    self.samples.setdefault((rights, _rights(attributes)), entry)

    def _children(self, folder: str) -> Iterator[tuple[Entry, Attributes]]:
        spec = self._connection.place.spec
        try:
            listing, targets = self._connection.attempt(lambda context: _read_folder(context, self._connection.below + b"/" + folder.encode()))
        except Failure as failure:
            raise _unreadable(spec, failure, folder) from failure
        for name, attributes in listing:
            child = _child(spec, folder, name)
            yield self._entry(child, attributes, targets.get(name)), attributes

    def _entry(self, path: str, attributes: Attributes, target: bytes | None) -> Entry:
        kind = _kind(self._connection.place.spec, path, attributes.format)
        mtime_ns = min(max(attributes.mtime_ns, 0), _LAST_MTIME_NS)
        is_file = kind is Kind.FILE
        return Entry(
            path, kind, attributes.size if is_file else 0, attributes.mode, mtime_ns, attributes.uid, attributes.gid,
            digest=token(self._identity, attributes) if is_file else "",
            target=_text(self._connection.place.spec, target, f"the target of the symlink {path!r}") if target is not None else "",
        )  # fmt: skip


def _rights(attributes: Attributes) -> _Rights:
    return attributes.uid, attributes.gid, attributes.mode


def _read_folder(context: Context, path: bytes) -> tuple[_Listing, dict[bytes, bytes]]:
    """The folder's listing, complete, and its symlinks' targets; one attempt, so that both come over one connection."""
    listing = _completed(context, path, context.list_folder(path))
    links = [name for name, attributes in listing if attributes.format == stat.S_IFLNK]
    return listing, dict(zip(links, context.read_links([_join(path, name) for name in links]), strict=True))


def _completed(context: Context, path: bytes, listing: _Listing) -> _Listing:
    """`listing` with attributes asked for where the server or libnfs left them out (file ids of NFSv4, v3 servers short of READDIRPLUS)."""
    lacking = [i for i, (_, a) in enumerate(listing) if not a.format or (a.format == stat.S_IFREG and not a.file_id)]
    known = context.stat_many([_join(path, listing[i][0]) for i in lacking])
    for i, attributes in zip(lacking, known, strict=True):
        listing[i] = (listing[i][0], attributes)
    return listing


def _join(folder: bytes, name: bytes) -> bytes:
    return folder.rstrip(b"/") + b"/" + name


def _child(spec: NasSpec, folder: str, name: bytes) -> str:
    text = _text(spec, name, f"a name in the folder {'/' + folder!r}")
    return f"{folder}/{text}" if folder else text


def _text(spec: NasSpec, name: bytes, what: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        shown = name.decode(errors="backslashreplace")
        raise UnsafeContent(f"{spec.shown}: {what} is not UTF-8: '{shown}'; rename it on the server") from error


def _kind(spec: NasSpec, path: str, format: int) -> Kind:
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}
    if format not in kinds:
        what = _SPECIAL.get(format, "of an unknown kind")
        raise UnsafeContent(f"{spec.shown}: {path!r} is {what}; a volume holds files, folders and symlinks only; remove it on the server")
    return kinds[format]


def _unreadable(spec: NasSpec, failure: Failure, folder: str) -> DataCacheError:
    if folder and failure.code in _GONE:
        return OriginUnavailable(f"{spec.shown}: the folder {folder!r} changed while it was listed; try again when nothing writes to it")
    return refused(spec, failure, folder.encode())
