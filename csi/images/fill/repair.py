"""Files that need a second look: one that a kill cut in the middle, one whose bytes were wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

from csi.images.fill.fetch import PatientReader
from csi.images.fill.verify_digests import FileHash, corrupt
from csi.images.layout.chunks import CHUNK, zero_padding
from csi.images.layout.erofs import aligned
from csi.images.layout.layout import Extent
from csi.images.node_store.partial_image import PartialImage
from csi.linux.aligned_memory import Buffer


def hash_from_disk(image: PartialImage, extent: Extent, until: int, check: Callable[[], None]) -> FileHash:
    """The running digest of a file up to image byte `until` (a chunk's begin), from the bytes on disk. `check` raises to stop."""
    running = FileHash(extent.entry)
    if extent.entry.verifiable:
        for view in _read_ahead(image, extent.offset, until):
            check()
            running.update(view)
    return running


def _read_ahead(image: PartialImage, begin: int, end: int) -> Iterator[memoryview]:
    """The image's bytes from `begin` to `end`, in order; the next are read while the caller has the last."""
    buffers = cycle([Buffer(CHUNK).view, Buffer(CHUNK).view])

    def read(at: int) -> memoryview:
        view = next(buffers)[: min(CHUNK, end - at)]
        image.read(at, view)
        return view

    with ThreadPoolExecutor(1, "fill read back") as disk:
        ready = disk.submit(read, begin)
        for at in range(begin + CHUNK, end + CHUNK, CHUNK):
            view = ready.result()
            if at < end:
                ready = disk.submit(read, at)
            yield view


def refetch(image: PartialImage, extent: Extent, reader: PatientReader, check: Callable[[], None]) -> None:
    """Fetch a whole file once more, from its beginning, over a fresh connection. Raises CorruptContent when it is wrong again."""
    entry = extent.entry
    running = FileHash(entry)
    reader.renew()
    buffer = Buffer(min(aligned(entry.size), CHUNK)).view
    for offset in range(0, entry.size, CHUNK):
        check()
        length = min(CHUNK, entry.size - offset)
        view = buffer[: aligned(length)]
        reader.read_into(entry, offset, view[:length])
        zero_padding(view, length)
        running.update(view[:length])
        image.write(extent.offset + offset, view)
    if found := running.wrong():
        raise corrupt(entry, found)
