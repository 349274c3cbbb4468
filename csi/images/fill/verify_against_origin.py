"""A sealed image held against what an origin sends: does whoever lists its digests have its bytes?

Of every file one range is read, of large files some more, at places that the origin cannot foresee and that are the same
whenever the same question is asked again: a guess that failed once fails for ever.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from csi.errors import CorruptContent, DataCacheError
from csi.images.fill.adaptive_concurrency import Widening
from csi.images.fill.fetch import PatientReader
from csi.images.fill.request_gate import Flow
from csi.images.layout.erofs import BLOCK
from csi.images.layout.layout import Extent, Layout, is_laid_out
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader

RANGE = BLOCK
"""Bytes of a range; a file of no more is read whole."""
LARGE = 1024 * 1024
RANGES_OF_LARGE = 8
"""A file over LARGE bytes is read in so many ranges: much of it may be public, or zeros."""
_TICK = 0.1


class Probe(NamedTuple):
    """`length` bytes from byte `offset` of a file on."""

    extent: Extent
    offset: int
    length: int


def probes(layout: Layout, seed: bytes) -> Iterator[Probe]:
    """What is compared of each file that has bytes; `seed` (at most 64 secret bytes) decides where."""
    for extent in layout.extents:
        size = extent.entry.size
        count = RANGES_OF_LARGE if size > LARGE else 1
        yield from (Probe(extent, offset, min(RANGE, size)) for offset in sorted(_offset(seed, extent, number) for number in range(count)))


def _offset(seed: bytes, extent: Extent, number: int) -> int:
    drawn = hashlib.blake2b(b"%d %d" % (extent.offset, number), key=seed, digest_size=16).digest()
    return int.from_bytes(drawn) % (max(0, extent.entry.size - RANGE) + 1)


def vouch(layout: Layout, image: Path, open_reader: OpenReader, seed: bytes, *, connections: int = 4) -> None:
    """Return if the origin sends what the image of `layout` at `image` holds, as far as `probes` tell.

    Raises CorruptContent naming the first file found to differ, what the reader raises, and DataCacheError where the image
    is not laid out as `layout` is. At most `connections` readers are opened.
    """
    if not is_laid_out(image, layout):
        raise DataCacheError(f"the image {image} was laid out by another version of this driver; remove it with its folder, and it is filled anew")
    file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        _Comparison(file, probes(layout, seed), open_reader, min(connections, max(1, len(layout.extents)))).run()
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


class _Comparison:
    """All readers take their probes from one line; the first error ends them."""

    def __init__(self, image: int, line: Iterator[Probe], open_reader: OpenReader, connections: int) -> None:
        self._image, self._line = image, enumerate(line)
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._flow = Flow(Widening(connections, RANGE), self._pause)
        self._readers = [PatientReader(open_reader, self._flow) for _ in range(connections)]

    def run(self) -> None:
        threads = [threading.Thread(target=self._guarded, args=(reader,), name="vouch", daemon=True) for reader in self._readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_TICK)
                self._flow.look(sum(reader.fetched for reader in self._readers))
        if self._error:
            raise self._error

    def _guarded(self, reader: PatientReader) -> None:
        try:
            with reader:
                self._compare(reader)
        except BaseException as error:
            with self._guard:
                self._error = self._error or error
            self._ended.set()

    def _compare(self, reader: PatientReader) -> None:
        found = memoryview(bytearray(RANGE))
        # An origin that ignores ranges is asked in this order, so that it sends each file once.
        while (probe := self._next(reader)) is not None and not self._ended.is_set():
            part = found[: probe.length]
            reader.read_into(probe.extent.entry, probe.offset, part)
            if part != os.pread(self._image, probe.length, probe.extent.offset + probe.offset):
                raise _differs(probe.extent.entry)

    def _next(self, reader: PatientReader) -> Probe | None:
        with self._guard:
            reader.rank, probe = next(self._line, (0, None))
            return probe

    def _pause(self, seconds: float) -> None:
        self._ended.wait(seconds)
        if self._error:
            raise self._error


def _differs(entry: Entry) -> CorruptContent:
    return CorruptContent(
        f"the origin does not send the bytes of {entry.path!r} that its listing names ({entry.digest}); "
        "check the origin or the mirror in front of it, then create the cache again"
    )
