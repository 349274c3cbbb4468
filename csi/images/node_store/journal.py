"""The journal of a fill: how much of a partial image is on disk and verified.

A header that binds it to one image, and fixed-size records. A record is either the image byte up to which
everything is durable, or the offset of a file that was copied from another image and is durable by itself.
Records are appended only after the image was synced, so every complete record is true, whatever happened
since.

Format, little endian: header `<8sIIQ32sI` (magic, layout format, chunk bytes, image bytes, manifest digest,
crc32), record `<QI` (durable bytes or, with the highest bit set, offset of a copied file; crc32 that
continues the header's).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from csi.images.layout.layout import LAYOUT_FORMAT, Layout

_MAGIC = b"DCFILL\0\1"
_header = struct.Struct("<8sIIQ32sI")
_record = struct.Struct("<QI")
# Image offsets are below 2**44 (16 TiB), so the highest bit is free.
_COPIED_FLAG = 1 << 63


class Journal:
    """The open journal at `path` for `layout`; records of another image and damaged ones are dropped.

    For one thread.
    """

    def __init__(self, path: Path, layout: Layout, chunk_bytes: int) -> None:
        self._header = _build_header(layout, chunk_bytes)
        # Records continue the header's checksum, so those of another image never match.
        self._crc_seed = zlib.crc32(self._header)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = path.read_bytes()
        self.durable_bytes = 0
        """Image bytes, from offset 0, that are on disk, with every file that ends in them verified."""
        self.copied_offsets: set[int] = set()
        """Image offsets of files that were copied from other images and are on disk."""
        if content.startswith(self._header):
            self._recover(content)
        else:
            self.reset()

    def append(self, durable_bytes: int) -> None:
        """Record that image bytes up to `durable_bytes` are synced.

        The record itself is not synced: losing it only means to fetch again.
        """
        os.write(self._fd, self._pack(durable_bytes))
        self.durable_bytes = durable_bytes

    def append_copied(self, offsets: Iterable[int]) -> None:
        """Record that the files at these image offsets were copied and synced."""
        new_offsets = sorted(set(offsets) - self.copied_offsets)
        os.write(self._fd, b"".join(self._pack(_COPIED_FLAG | offset) for offset in new_offsets))
        self.copied_offsets.update(new_offsets)

    @property
    def has_records(self) -> bool:
        """Whether any part of the image is on disk."""
        return self.durable_bytes > 0 or bool(self.copied_offsets)

    def _pack(self, value: int) -> bytes:
        body = struct.pack("<Q", value)
        return body + struct.pack("<I", zlib.crc32(body, self._crc_seed))

    def reset(self) -> None:
        """Remove all records durably: after a power cut an old record must not meet a new partial image."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, self._header)
        os.fsync(self._fd)
        self.durable_bytes = 0
        self.copied_offsets.clear()

    def _recover(self, content: bytes) -> None:
        position = len(self._header)
        while position + _record.size <= len(content):
            value, crc = _record.unpack_from(content, position)
            # A torn record at the end: records are not synced one by one.
            if crc != zlib.crc32(content[position : position + 8], self._crc_seed):
                break
            if value & _COPIED_FLAG:
                self.copied_offsets.add(value ^ _COPIED_FLAG)
            else:
                self.durable_bytes = value
            position += _record.size
        os.ftruncate(self._fd, position)
        os.lseek(self._fd, position, os.SEEK_SET)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal_digest(path: Path) -> str:
    """Return the manifest digest of the fill that began with the journal at `path`, "" if none has."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_header.size + _record.size)
    except FileNotFoundError:
        return ""
    if len(head) < _header.size + _record.size:
        return ""
    *fields, digest, crc = _header.unpack_from(head)
    return digest.hex() if fields[0] == _MAGIC and crc == zlib.crc32(_header.pack(*fields, digest, 0)) else ""


def _build_header(layout: Layout, chunk_bytes: int) -> bytes:
    fields = (_MAGIC, LAYOUT_FORMAT, chunk_bytes, layout.size, bytes.fromhex(layout.manifest.digest))
    return _header.pack(*fields, zlib.crc32(_header.pack(*fields, 0)))
