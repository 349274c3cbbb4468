"""The tree of a NAS folder as manifest entries: one listing per folder, attributes included.

NFS has no content digests, so the digest of a file is a token: file id, size and mtime of the file, and
server and path of the source, so that files of two sources never have equal tokens.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from csi.errors import DataCacheError, OriginUnavailable, UnsafeContent
from csi.manifest.manifest import Entry, EntryKind
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.client import NfsConnection, path_error
from csi.sources.nfs.libnfs import FileAttributes, NfsContext, NfsError

_SPECIAL_FILES = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}
# A signed 64-bit number of nanoseconds ends in the year 2262.
_MAX_MTIME_NS = (1 << 63) - 1
_VANISHED_ERRNOS = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
_Listing = list[tuple[bytes, FileAttributes]]
# Owner, group and mode. Those of a file and of the folders above it decide whether a given uid can read it.
_Permissions = tuple[int, int, int]
PermissionClass = tuple[frozenset[_Permissions], _Permissions]


def build_file_token(identity: str, attributes: FileAttributes) -> str:
    """Return the digest text of a file.

    It changes with the file and differs between origins (`identity`).
    """
    return f"token:nfs {attributes.file_id} {attributes.size} {attributes.mtime_ns} {identity}"


class TreeWalk:
    """One walk over the folder of a connection.

    Afterwards `samples` has one file of each permission class.
    """

    def __init__(self, connection: NfsConnection, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        self.samples: dict[PermissionClass, Entry] = {}

    def iter_entries(self) -> Iterator[Entry]:
        """Yield every file, folder and symlink except the root.

        Raises SourceNotFound or PermissionDenied naming the folder, UnsafeContent naming a special file or a
        name that is not UTF-8, and OriginUnavailable also if the tree changes during the walk.
        """
        # Folders to list, each with the permissions of all folders above it.
        pending: list[tuple[str, frozenset[_Permissions]]] = [("", frozenset())]
        while pending:
            folder, permissions = pending.pop()
            for entry, attributes in self._list_children(folder):
                yield entry
                if entry.kind is EntryKind.DIRECTORY:
                    pending.append((entry.path, permissions | {_get_permissions(attributes)}))
                elif entry.kind is EntryKind.FILE:
                    self.samples.setdefault((permissions, _get_permissions(attributes)), entry)

    def _list_children(self, folder: str) -> Iterator[tuple[Entry, FileAttributes]]:
        spec = self._connection.folder.spec
        try:
            listing, targets = self._connection.run_with_retry(
                lambda context: _read_folder(context, self._connection.relative_path + b"/" + folder.encode())
            )
        except NfsError as failure:
            raise _folder_error(spec, failure, folder) from failure
        for name, attributes in listing:
            child = _child_path(spec, folder, name)
            yield self._build_entry(child, attributes, targets.get(name)), attributes

    def _build_entry(self, path: str, attributes: FileAttributes, target: bytes | None) -> Entry:
        kind = _get_kind(self._connection.folder.spec, path, attributes.file_type)
        mtime_ns = min(max(attributes.mtime_ns, 0), _MAX_MTIME_NS)
        is_file = kind is EntryKind.FILE
        return Entry(
            path,
            kind,
            attributes.size if is_file else 0,
            attributes.mode,
            mtime_ns,
            attributes.uid,
            attributes.gid,
            digest=build_file_token(self._identity, attributes) if is_file else "",
            target="" if target is None else self._decode_target(path, target),
        )

    def _decode_target(self, path: str, target: bytes) -> str:
        return _decode_name(self._connection.folder.spec, target, f"the target of the symlink {path!r}")


def _get_permissions(attributes: FileAttributes) -> _Permissions:
    return attributes.uid, attributes.gid, attributes.mode


def _read_folder(context: NfsContext, path: bytes) -> tuple[_Listing, dict[bytes, bytes]]:
    """Return the complete listing of a folder and the targets of its symlinks.

    Run as one attempt, so that both come over one connection.
    """
    listing = _complete_attributes(context, path, context.list_folder(path))
    links = [name for name, attributes in listing if attributes.file_type == stat.S_IFLNK]
    return listing, dict(zip(links, context.read_links([_join(path, name) for name in links]), strict=True))


def _complete_attributes(context: NfsContext, path: bytes, listing: _Listing) -> _Listing:
    """Query the attributes that the server or libnfs left out.

    These are the file ids of NFSv4, and everything from v3 servers without READDIRPLUS.
    """
    incomplete = [
        i
        for i, (_, a) in enumerate(listing)
        if not a.file_type or (a.file_type == stat.S_IFREG and not a.file_id)
    ]
    completed = context.stat_many([_join(path, listing[i][0]) for i in incomplete])
    for i, attributes in zip(incomplete, completed, strict=True):
        listing[i] = (listing[i][0], attributes)
    return listing


def _join(folder: bytes, name: bytes) -> bytes:
    return folder.rstrip(b"/") + b"/" + name


def _child_path(spec: NasSpec, folder: str, name: bytes) -> str:
    text = _decode_name(spec, name, f"a name in the folder {'/' + folder!r}")
    return f"{folder}/{text}" if folder else text


def _decode_name(spec: NasSpec, name: bytes, description: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        escaped = name.decode(errors="backslashreplace")
        raise UnsafeContent(
            f"{spec.display_name}: {description} is not UTF-8: '{escaped}'; rename it on the server"
        ) from error


def _get_kind(spec: NasSpec, path: str, file_type: int) -> EntryKind:
    kinds = {stat.S_IFREG: EntryKind.FILE, stat.S_IFDIR: EntryKind.DIRECTORY, stat.S_IFLNK: EntryKind.SYMLINK}
    if file_type not in kinds:
        description = _SPECIAL_FILES.get(file_type, "of an unknown kind")
        raise UnsafeContent(
            f"{spec.display_name}: {path!r} is {description}; "
            "a volume can only have files, folders and symlinks; remove it on the server"
        )
    return kinds[file_type]


def _folder_error(spec: NasSpec, failure: NfsError, folder: str) -> DataCacheError:
    if folder and failure.code in _VANISHED_ERRNOS:
        return OriginUnavailable(
            f"{spec.display_name}: the folder {folder!r} changed while it was listed; "
            "try again when nothing writes to it"
        )
    return path_error(spec, failure, folder.encode())
