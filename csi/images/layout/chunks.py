"""Chunks: the data area of an image in equal regions, the unit of reading, writing and the journal."""

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
"""Default size of a chunk; the last one may be smaller. Callers may choose another multiple of 4096."""


class Piece(NamedTuple):
    """The part of one file in one chunk.

    It is `length` bytes from byte `offset` of the file, at byte `start` of the chunk.
    """

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
    """`length` bytes of the image from byte `offset` (both multiples of 4096).

    `pieces` are the parts of files in it, in order.
    """

    index: int
    offset: int
    length: int
    pieces: list[Piece]

    @property
    def content_bytes(self) -> int:
        """Bytes of files in the chunk, without padding."""
        return sum(piece.length for piece in self.pieces)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The whole blocks taken by the pieces, as start and end within the chunk.

        Only these may be written, since files between them were copied from other images.
        """
        spans: list[tuple[int, int]] = []
        for piece in self.pieces:
            end = align(piece.start + piece.length)
            begin = spans.pop()[0] if spans and spans[-1][1] == piece.start else piece.start
            spans.append((begin, end))
        return spans


class ChunkPlan:
    """The chunks of a layout that contain bytes to fetch, computed on demand.

    Chunks begin at multiples of `chunk_bytes` after the layout's `metadata`. Files whose image offset is in
    `copied_offsets` are left out.
    """

    def __init__(
        self, layout: Layout, chunk_bytes: int = CHUNK_BYTES, copied_offsets: Container[int] = ()
    ) -> None:
        self.metadata, self.chunk_bytes = layout.metadata, chunk_bytes
        self._extents = (
            tuple(extent for extent in layout.extents if extent.offset not in copied_offsets)
            if copied_offsets
            else layout.extents
        )
        self._data_start = len(layout.metadata)
        self._size = layout.size
        all_numbers = range(-(-(self._size - self._data_start) // self.chunk_bytes))
        self._numbers: Sequence[int] = (
            all_numbers if self._extents is layout.extents else self._get_chunk_numbers(self._extents)
        )
        self.count = len(self._numbers)

    # An array of 8 bytes each instead of ints: an image of terabytes has a million chunks.
    def _get_chunk_numbers(self, extents: Iterable[Extent]) -> Sequence[int]:
        numbers = array("Q")
        for extent in extents:
            first, last = (
                (extent.offset + at - self._data_start) // self.chunk_bytes
                for at in (0, extent.entry.size - 1)
            )
            numbers.extend(range(max(first, numbers[-1] + 1) if numbers else first, last + 1))
        return numbers

    def get_offset(self, index: int) -> int:
        """Return the image byte where chunk `index` begins; for `count`, where the image ends."""
        return (
            self._data_start + self._numbers[index] * self.chunk_bytes if index < self.count else self._size
        )

    def index_at(self, offset: int) -> int:
        """Return the first chunk that begins at or after image byte `offset` (`count` at the image's end)."""
        return bisect_left(self._numbers, -(-max(0, offset - self._data_start) // self.chunk_bytes))

    def build_chunk(self, index: int) -> Chunk:
        """Return chunk `index`, 0 <= index < count."""
        begin = self.get_offset(index)
        end = min(begin + self.chunk_bytes, self._size)
        pieces = []
        extent_index = self._extent_index_at(begin)
        while extent_index < len(self._extents) and self._extents[extent_index].offset < end:
            entry, offset = self._extents[extent_index].entry, self._extents[extent_index].offset
            first, last = max(begin, offset), min(end, offset + entry.size)
            # The first extent looked at may end before the chunk.
            if first < last:
                pieces.append(Piece(entry, first - offset, first - begin, last - first))
            extent_index += 1
        return Chunk(index, begin, end - begin, pieces)

    def content_bytes_before(self, offset: int) -> int:
        """Return the bytes of files before image byte `offset`."""
        index = bisect_right(self._extents, offset, key=_offset)
        full_extents_bytes = sum(extent.entry.size for extent in self._extents[: max(0, index - 1)])
        return full_extents_bytes + (
            min(self._extents[index - 1].entry.size, offset - self._extents[index - 1].offset) if index else 0
        )

    def find_straddling_extent(self, offset: int) -> Extent | None:
        """Return the file that has bytes both before and after image byte `offset`, None if there is none."""
        index = bisect_right(self._extents, offset, key=_offset) - 1
        extent = self._extents[index] if index >= 0 else None
        return extent if extent and extent.offset < offset < extent.offset + extent.entry.size else None

    def _extent_index_at(self, offset: int) -> int:
        return max(0, bisect_right(self._extents, offset, key=_offset) - 1)


def _offset(extent: Extent) -> int:
    return extent.offset


def zero_padding(view: memoryview, end: int) -> None:
    """Zero the bytes after byte `end` of `view` up to a whole block, which pad the last block of a file."""
    stop = align(end)
    if stop != end:
        view[end:stop] = bytes(stop - end)
