"""Second reads of a file: one that was interrupted in the middle by a kill, or whose bytes were wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

from csi.images.fill.retrying_reader import RetryingReader
from csi.images.fill.verify_digests import FileHash, corrupt_content_error
from csi.images.layout.chunks import CHUNK_BYTES, zero_padding
from csi.images.layout.erofs import align
from csi.images.layout.layout import Extent
from csi.images.node_store.partial_image import PartialImage
from csi.linux.aligned_memory import AlignedBuffer


def hash_from_disk(
    image: PartialImage, extent: Extent, end: int, check_stopped: Callable[[], None]
) -> FileHash:
    """Hash a file up to image byte `end` (the start of a chunk) from the bytes on disk.

    `check_stopped` raises to stop.
    """
    file_hash = FileHash(extent.entry)
    if extent.entry.is_verifiable:
        for view in _read_ahead(image, extent.offset, end):
            check_stopped()
            file_hash.update(view)
    return file_hash


def _read_ahead(image: PartialImage, begin: int, end: int) -> Iterator[memoryview]:
    """Yield the image's bytes from `begin` to `end` in order.

    The next buffer is read while the caller uses the last.
    """
    # Two buffers: one is being read from the disk while the other is hashed.
    buffers = cycle([AlignedBuffer(CHUNK_BYTES).view, AlignedBuffer(CHUNK_BYTES).view])

    def read(offset: int) -> memoryview:
        view = next(buffers)[: min(CHUNK_BYTES, end - offset)]
        image.read(offset, view)
        return view

    with ThreadPoolExecutor(1, "fill read back") as disk:
        ready = disk.submit(read, begin)
        for offset in range(begin + CHUNK_BYTES, end + CHUNK_BYTES, CHUNK_BYTES):
            view = ready.result()
            if offset < end:
                ready = disk.submit(read, offset)
            yield view


def refetch(
    image: PartialImage, extent: Extent, reader: RetryingReader, check_stopped: Callable[[], None]
) -> None:
    """Fetch a whole file again from its beginning over a fresh connection.

    Raises CorruptContent if it is wrong again.
    """
    entry = extent.entry
    file_hash = FileHash(entry)
    reader.reset()
    buffer = AlignedBuffer(min(align(entry.size), CHUNK_BYTES)).view
    for offset in range(0, entry.size, CHUNK_BYTES):
        check_stopped()
        length = min(CHUNK_BYTES, entry.size - offset)
        view = buffer[: align(length)]
        reader.read_into(entry, offset, view[:length])
        zero_padding(view, length)
        file_hash.update(view[:length])
        image.write(extent.offset + offset, view)
    if digest := file_hash.find_mismatch():
        raise corrupt_content_error(entry, digest)
