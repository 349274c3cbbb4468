"""The manifest: everything a volume holds, fixed before a byte of it is fetched.

The content half (`Manifest.entries`) decides the image: its digest names the image, and the layout is
computed from it alone. The access half (`Manifest.access`) is the pinned cache spec, which tells a source how
to read each file. `build_manifest` is the only way to create one: it adds missing folders, sorts, enforces
limits and refuses what could harm a node, so every `Manifest` is safe and canonical.
"""

from __future__ import annotations

import enum
import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO

from csi.errors import DataCacheError, OutOfRange, UnsafeContent

FORMAT = 1
# Bounds the memory of a worker: an entry and its node in the layout take about 1 KB.
MAX_ENTRIES = 2_000_000
# NAME_MAX and PATH_MAX (without the terminating NUL) of Linux; EROFS has the same limit for names.
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
MAX_TARGET_BYTES = 4095
# For sources without modification times: 1980-01-01, as zip and other tools refuse earlier times.
DEFAULT_MTIME_NS = 315_532_800 * 10**9
_READ_BITS, _EXECUTE_BITS = 0o444, 0o111


class EntryKind(enum.StrEnum):
    """The kind of an entry; the value is the one in the canonical form."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of the tree.

    `path` is relative, '/'-separated UTF-8 text; the root itself has no entry. `size` is in bytes (0 unless a
    file), `mode` the permission bits (12 bits), `mtime_ns` nanoseconds since 1970, `target` the text of a
    symlink.

    `digest` identifies the bytes of a file:
    - "sha256:<hex>", or "git:<hex>" (git blob id, sha1);
    - "token:<text>" if the origin gives neither: origin identity and change token. It cannot be verified, but
      never
      equals a token of another origin.
    - "claimed:<sha256 hex> <text>": such a token with a sha256 that somebody other than the origin stated.
      The sha256 is
      verified, but two files are the same only if the tokens are equal too, so that nobody obtains another's
      file by
      naming its checksum.
    """

    path: str
    kind: EntryKind
    size: int = 0
    mode: int = 0o444
    mtime_ns: int = DEFAULT_MTIME_NS
    uid: int = 0
    gid: int = 0
    digest: str = ""
    target: str = ""

    @property
    def is_verifiable(self) -> bool:
        """Whether the bytes can be checked against the digest."""
        return self.digest.startswith(("sha256:", "git:", "claimed:"))

    def to_json(self) -> list[str | int]:
        """Return the entry as the JSON array that is digested and stored."""
        return [
            self.path,
            self.kind.value,
            self.size,
            self.mode,
            self.mtime_ns,
            self.uid,
            self.gid,
            self.digest,
            self.target,
        ]


@dataclass(frozen=True)
class Manifest:
    """A canonical, safe tree (`entries`, ordered by the bytes of the path) and how to read it (`access`).

    `access` is the pinned cache spec as a flat map of strings (`CacheSpec.to_context`); it is not part of the
    digest.
    """

    entries: tuple[Entry, ...]
    access: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """The sha256 of the canonical content half as 64 hex digits, which names the image."""
        sha = hashlib.sha256(_encode_line(["datacache manifest", FORMAT]))
        for entry in self.entries:
            sha.update(_encode_line(entry.to_json()))
        return sha.hexdigest()

    @cached_property
    def content_bytes(self) -> int:
        """The sum of all file sizes, in bytes."""
        return sum(e.size for e in self.entries)

    @property
    def files(self) -> Iterator[Entry]:
        """The file entries, in order."""
        return (e for e in self.entries if e.kind is EntryKind.FILE)

    def write(self, stream: IO[bytes]) -> None:
        """Write the manifest as JSON lines: a header, then one array per entry.

        The header has format, digest and access.
        """
        stream.write(_encode_line({"format": FORMAT, "digest": self.digest, "access": self.access}))
        for entry in self.entries:
            stream.write(_encode_line(entry.to_json()))

    @staticmethod
    def read_access(stream: IO[bytes]) -> dict[str, str]:
        """Read only the access half of what `write` wrote; raises DataCacheError if it is damaged."""
        try:
            return dict(json.loads(stream.readline())["access"])
        except (ValueError, TypeError, LookupError) as error:
            raise DataCacheError(
                "the stored manifest is damaged; remove its image folder so that it is resolved again"
            ) from error

    @staticmethod
    def read(stream: IO[bytes]) -> Manifest:
        """Read what `write` wrote.

        Raises DataCacheError if it has another format, is truncated or was changed.
        """
        try:
            header = json.loads(stream.readline())
            rows = [json.loads(line) for line in stream]
            entries = tuple(Entry(r[0], EntryKind(r[1]), *r[2:]) for r in rows)
            version, digest, access = header["format"], header["digest"], dict(header["access"])
        except (ValueError, TypeError, LookupError) as error:
            raise DataCacheError(
                "the stored manifest is damaged; remove its image folder so that it is resolved again"
            ) from error
        if version != FORMAT:
            raise DataCacheError(f"the stored manifest has format {version}, this driver reads {FORMAT}")
        manifest = Manifest(entries, access)
        if manifest.digest != digest:
            raise DataCacheError(
                "the stored manifest does not match its digest; "
                "remove its image folder so that it is resolved again"
            )
        return manifest


def build_manifest(
    entries: Iterable[Entry], access: dict[str, str], *, preserve_ownership: bool = False
) -> Manifest:
    """Check, complete and sort `entries`.

    Unless `preserve_ownership`, owners become root:root and modes r--r--r-- (r-xr-xr-x for folders and files
    with any execute bit). Raises UnsafeContent naming the path for absolute, empty, '.' or '..' components,
    NUL, names over 255 bytes, paths over 4095, duplicates, a file used as a folder, and symlinks that are
    absolute or leave the tree; OutOfRange for more than 2,000,000 entries.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        check_path(entry.path)
        if entry.kind is EntryKind.SYMLINK:
            _check_target(entry)
        if entry.path in by_path:
            raise UnsafeContent(f"the source lists {entry.path!r} twice; a volume needs each path once")
        by_path[entry.path] = entry if preserve_ownership else _normalize_ownership(entry)
        if len(by_path) > MAX_ENTRIES:
            raise OutOfRange(
                f"the source has more than {MAX_ENTRIES} files and folders; "
                "narrow it with allowPatterns, ignorePatterns or a sub-path"
            )
    _add_parents(by_path)
    for entry in by_path.values():
        if entry.kind is EntryKind.SYMLINK and _escapes_tree(entry, by_path):
            raise UnsafeContent(
                f"the symlink {entry.path!r} in the source points to {entry.target!r}, outside the volume; "
                "make it stay inside"
            )
    return Manifest(tuple(sorted(by_path.values(), key=lambda e: e.path.encode())), dict(access))


# The canonical form: any change to it changes the digest of every image.
def _encode_line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def check_path(path: str) -> None:
    """Raise UnsafeContent, naming `path`, unless an `Entry` can have it.

    It must be relative and UTF-8, with plain names of bounded length.
    """
    quoted = repr(path[:200])
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise UnsafeContent(f"the name {quoted} in the source is not UTF-8; rename it there") from error
    if not path or path.startswith("/") or "\0" in path:
        raise UnsafeContent(
            f"the path {quoted} in the source is empty, absolute or contains a NUL byte; "
            "it cannot be in a volume"
        )
    if len(encoded) > MAX_PATH_BYTES:
        raise UnsafeContent(f"the path {quoted}... in the source is over {MAX_PATH_BYTES} bytes")
    for name in path.split("/"):
        if name in ("", ".", ".."):
            raise UnsafeContent(
                f"the path {quoted} in the source has an empty, '.' or '..' component; "
                "it cannot be in a volume"
            )
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UnsafeContent(
                f"the path {quoted} in the source has a name over {MAX_NAME_BYTES} bytes; rename it there"
            )


def _check_target(entry: Entry) -> None:
    target = entry.target
    if not target or "\0" in target or len(target.encode(errors="surrogateescape")) > MAX_TARGET_BYTES:
        raise UnsafeContent(
            f"the symlink {entry.path!r} in the source has a target that is empty, too long or contains NUL"
        )


def _escapes_tree(link: Entry, by_path: dict[str, Entry]) -> bool:
    """Return whether following `link` can end outside the tree.

    A '..' behind another symlink counts as leaving it, since the target of that symlink is not resolved here.
    """
    folder_parts = link.path.split("/")[:-1]
    if link.target.startswith("/"):
        return True
    behind_link = False
    for name in link.target.split("/"):
        if name == "..":
            if behind_link or not folder_parts:
                return True
            folder_parts.pop()
        elif name not in ("", "."):
            folder_parts.append(name)
            entry = by_path.get("/".join(folder_parts))
            behind_link = behind_link or (entry is not None and entry.kind is EntryKind.SYMLINK)
    return False


def _normalize_ownership(entry: Entry) -> Entry:
    execute = entry.kind is EntryKind.DIRECTORY or entry.mode & _EXECUTE_BITS
    mode = 0o777 if entry.kind is EntryKind.SYMLINK else _READ_BITS | (_EXECUTE_BITS if execute else 0)
    return replace(entry, mode=mode, uid=0, gid=0)


def _add_parents(by_path: dict[str, Entry]) -> None:
    # Climb until a known folder: its own parents were added before, so this takes one step for most paths.
    for path in list(by_path):
        parent = posixpath.dirname(path)
        while parent:
            existing = by_path.get(parent)
            if existing is None:
                by_path[parent] = Entry(parent, EntryKind.DIRECTORY, mode=_READ_BITS | _EXECUTE_BITS)
            elif existing.kind is not EntryKind.DIRECTORY:
                raise UnsafeContent(f"the source has {parent!r} both as a file and as a folder")
            else:
                break
            parent = posixpath.dirname(parent)
