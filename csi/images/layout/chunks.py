"""Chunks: the data area of an image cut into equal regions, the unit of reading, writing and of the journal."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from csi.images.layout.erofs import align
from csi.images.layout.layout import Extent, Layout
from csi.manifest.manifest import Entry

CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes of a chunk, but of the last, unless the caller wants another multiple of 4096."""


class Piece(NamedTuple):
    """The bytes of one file in one chunk: `length` bytes from byte `offset` of the file on, at byte `start` of the chunk."""

    entry: Entry
    offset: int
    start: int
    length: int

    @property
    def ends_file(self) -> bool:
        """Whether these are the last bytes of the file."""
        return self.offset + self.length == self.entry.size


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` bytes of the image from byte `offset` on (both multiples of 4096) and the files' pieces in it, in order."""

    index: int
    offset: int
    length: int
    pieces: list[Piece]

    @property
    def content_bytes(self) -> int:
        """Bytes of files in the chunk, without what pads them."""
        return sum(piece.length for piece in self.pieces)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The whole blocks that the pieces take, as begin and end in the chunk: all that may be written, since files between them are copied."""
        spans: list[tuple[int, int]] = []
        for piece in self.pieces:
            end = align(piece.start + piece.length)
            begin = spans.pop()[0] if spans and spans[-1][1] == piece.start else piece.start
            spans.append((begin, end))
        return spans


class ChunkPlan:
    """The chunks of a layout that hold bytes to fetch, computed when asked for.

    Chunks begin a multiple of `chunk_bytes` behind the metadata. Files that begin at an image byte in `copied` are left out.
    """

    def __init__(
        self, layout: Layout, chunk_bytes: int = CHUNK_BYTES, copied_offsets: Container[int] = ()
    ) -> None:
        self.chunk_bytes = chunk_bytes
        self._extents = (
            tuple(extent for extent in layout.extents if extent.offset not in copied_offsets)
            if copied_offsets
            else layout.extents
        )
        self._data_start = len(layout.metadata)
        self._size = layout.size
        everything = range(-(-(self._size - self._data_start) // self.chunk_bytes))
        self._numbers: Sequence[int] = (
            everything if self._extents is layout.extents else self._get_chunk_numbers(self._extents)
        )
        self.count = len(self._numbers)

    def _get_chunk_numbers(self, extents: Iterable[Extent]) -> Sequence[int]:
        numbers = array("Q")
        for extent in extents:
            first, last = (
                (extent.offset + at - self._data_start) // self.chunk_bytes
                for at in (0, extent.entry.size - 1)
            )
            numbers.extend(range(max(first, numbers[-1] + 1) if numbers else first, last + 1))
        return numbers

    def offset(self, index: int) -> int:
        """The image byte where chunk `index` begins; of `count`, where the image ends."""
        return (
            self._data_start + self._numbers[index] * self.chunk_bytes if index < self.count else self._size
        )

    def index_at(self, offset: int) -> int:
        """The first chunk that begins at image byte `offset` or behind it (`count` for the image's end)."""
        return bisect_left(self._numbers, -(-max(0, offset - self._data_start) // self.chunk_bytes))

    def chunk(self, index: int) -> Chunk:
        """Chunk `index`, 0 <= index < count."""
        begin = self.offset(index)
        end = min(begin + self.chunk_bytes, self._size)
        pieces = []
        extent_index = self._extent_index_at(begin)
        while extent_index < len(self._extents) and self._extents[extent_index].offset < end:
            entry, offset = self._extents[extent_index].entry, self._extents[extent_index].offset
            first, last = max(begin, offset), min(end, offset + entry.size)
            # The first one found may end before the chunk.
            if first < last:
                pieces.append(Piece(entry, first - offset, first - begin, last - first))
            extent_index += 1
        return Chunk(index, begin, end - begin, pieces)

    def content_bytes_before(self, offset: int) -> int:
        """Bytes of files that stand before image byte `offset`."""
        at = bisect_right(self._extents, offset, key=_offset)
        whole = sum(extent.entry.size for extent in self._extents[: max(0, at - 1)])
        return whole + (
            min(self._extents[at - 1].entry.size, offset - self._extents[at - 1].offset) if at else 0
        )

    def find_straddling_extent(self, offset: int) -> Extent | None:
        """The file that has bytes both before and from image byte `offset` on."""
        at = bisect_right(self._extents, offset, key=_offset) - 1
        extent = self._extents[at] if at >= 0 else None
        return extent if extent and extent.offset < offset < extent.offset + extent.entry.size else None

    def _extent_index_at(self, offset: int) -> int:
        return max(0, bisect_right(self._extents, offset, key=_offset) - 1)


def _offset(extent: Extent) -> int:
    return extent.offset


def zero_padding(view: memoryview, end: int) -> None:
    """Zero what follows byte `end` of `view` up to a whole block: a file's last block is padded with zeros."""
    stop = align(end)
    if stop != end:
        view[end:stop] = bytes(stop - end)
