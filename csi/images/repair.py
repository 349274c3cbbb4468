"""Files that need a second look: one that a kill cut in the middle, one whose bytes were wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from csi.images.buffers import Buffer
from csi.images.chunks import CHUNK, zero_padding
from csi.images.erofs import aligned
from csi.images.fetch import PatientReader
from csi.images.layout import Extent
from csi.images.partial import PartialImage
from csi.images.verify import FileHash, corrupt


def hash_from_disk(image: PartialImage, extent: Extent, until: int, check: Callable[[], None]) -> FileHash:
    """The running digest of a file up to image byte `until` (a chunk's begin), from the bytes on disk. `check` raises to stop."""
    running = FileHash(extent.entry)
    if extent.entry.verifiable:
        for offset, view in _steps(until - extent.offset):
            check()
            image.read(extent.offset + offset, view)
            running.update(view)
    return running


def refetch(image: PartialImage, extent: Extent, reader: PatientReader, check: Callable[[], None]) -> None:
    """Fetch a whole file once more, from its beginning, over a fresh connection. Raises CorruptContent when it is wrong again."""
    entry = extent.entry
    running = FileHash(entry)
    reader.renew()
    for offset, view in _steps(aligned(entry.size)):
        check()
        length = min(len(view), entry.size - offset)
        reader.read_into(entry, offset, view[:length])
        zero_padding(view, length)
        running.update(view[:length])
        image.write(extent.offset + offset, view)
    if found := running.wrong():
        raise corrupt(entry, found)


def _steps(size: int) -> Iterator[tuple[int, memoryview]]:
    """Offsets that cover `size` bytes, each with the same buffer, as long as the step."""
    buffer = Buffer(CHUNK).view
    for offset in range(0, size, CHUNK):
        yield offset, buffer[: min(CHUNK, size - offset)]
