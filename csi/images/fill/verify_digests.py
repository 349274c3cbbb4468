"""Verification of file bytes against the digests in the manifest: sha256, or a git blob id."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from csi.errors import CorruptContent
from csi.images.layout.chunks import Piece
from csi.manifest.manifest import Entry, Manifest

if TYPE_CHECKING:
    from hashlib import _Hash


class FileHash:
    """The running digest of one file; any bytes are accepted for a file without a checksum.

    A token, which stands in the place of a checksum, only says whether a file has changed.
    """

    def __init__(self, entry: Entry) -> None:
        self._hash: _Hash | None = None
        self._scheme, _, value = entry.digest.partition(":")
        # "claimed:<sha256> <token>": a checksum that the volume's parameters state, with the origin's token.
        self._expected = value.partition(" ")[0]
        if self._scheme in ("sha256", "claimed"):
            self._hash = hashlib.sha256()
        elif self._scheme == "git":
            # git-hash-object: sha1 of "blob <size>\0" and the bytes.
            self._hash = hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        """Add the next bytes of the file."""
        if self._hash is not None:
            self._hash.update(data)

    def find_mismatch(self) -> str | None:
        """Return the computed digest if it is wrong, else None; call after the last byte."""
        if self._hash is None:
            return None
        digest = self._hash.hexdigest()
        return None if digest == self._expected else f"{self._scheme}:{digest}"


class DigestVerifier:
    """Verifies files from their pieces, which arrive in the order of the image."""

    def __init__(self) -> None:
        self._current: FileHash | None = None

    def resume(self, current: FileHash) -> None:
        """Continue with the file of `current`, to which the first piece belongs."""
        self._current = current

    def feed(self, piece: Piece, data: memoryview) -> str | None:
        """Add a piece and its bytes.

        Return the computed digest if the piece ends a file whose digest is wrong.
        """
        if piece.offset == 0 or self._current is None:
            self._current = FileHash(piece.entry)
        self._current.update(data)
        return self._current.find_mismatch() if piece.ends_file else None


def check_empty_files(manifest: Manifest) -> None:
    """Raise CorruptContent if the digest of an empty file is that of other content."""
    for entry in manifest.files:
        if entry.size == 0 and entry.is_verifiable and (digest := FileHash(entry).find_mismatch()):
            raise corrupt_content_error(entry, digest)


def corrupt_content_error(entry: Entry, digest: str) -> CorruptContent:
    """Create the error for a file whose bytes do not match its digest."""
    if entry.digest.startswith("claimed:"):
        return CorruptContent(
            f"{entry.path!r} has the sha256 {digest.removeprefix('claimed:')}, "
            f"not {entry.digest[len('claimed:') :].partition(' ')[0]}; "
            "check sha256, and whether the file has changed"
        )
    return CorruptContent(
        f"the origin sent wrong bytes for {entry.path!r}: expected {entry.digest}, found {digest}; "
        "check the origin or the mirror in front of it, then create the cache again"
    )
