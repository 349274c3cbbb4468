"""Verification of a sealed image against an origin: does whoever lists these digests also have the bytes?

One range of every file is compared, and several of large files. The origin cannot predict the offsets, which
are the same whenever the same question is asked again: a guess that failed once fails for ever.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from csi.errors import CorruptContent, DataCacheError
from csi.images.fill.adaptive_concurrency import AdaptiveConcurrency
from csi.images.fill.request_gate import RequestGate
from csi.images.fill.retrying_reader import RetryingReader
from csi.images.layout.erofs import BLOCK
from csi.images.layout.layout import Extent, Layout, matches_layout
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader

PROBE_BYTES = BLOCK
"""Bytes of a range; a file of no more is compared completely."""
LARGE_FILE_BYTES = 1024 * 1024
PROBES_PER_LARGE_FILE = 8
"""Number of ranges of a file over LARGE_FILE_BYTES, as much of it may be public, or zeros."""
# Seconds between two adaptations of the number of readers.
_POLL_INTERVAL = 0.1


class Probe(NamedTuple):
    """`length` bytes of a file, starting at byte `offset`."""

    extent: Extent
    offset: int
    length: int


def select_probes(layout: Layout, seed: bytes) -> Iterator[Probe]:
    """Yield the ranges to compare of each non-empty file.

    `seed` (at most 64 secret bytes) decides where they are.
    """
    for extent in layout.extents:
        size = extent.entry.size
        count = PROBES_PER_LARGE_FILE if size > LARGE_FILE_BYTES else 1
        yield from (
            Probe(extent, offset, min(PROBE_BYTES, size))
            for offset in sorted(_choose_offset(seed, extent, number) for number in range(count))
        )


def _choose_offset(seed: bytes, extent: Extent, number: int) -> int:
    # A keyed hash instead of a random number: a second try reads the same ranges, so trying again gains
    # nothing.
    keyed_hash = hashlib.blake2b(b"%d %d" % (extent.offset, number), key=seed, digest_size=16).digest()
    return int.from_bytes(keyed_hash) % (max(0, extent.entry.size - PROBE_BYTES) + 1)


def verify_against_origin(
    layout: Layout, image: Path, open_reader: OpenReader, seed: bytes, *, max_connections: int = 4
) -> None:
    """Compare the ranges of `select_probes` between the origin and the image of `layout` at `image`.

    At most `max_connections` readers are opened. Raises CorruptContent naming the first file that differs,
    the errors of the reader, and DataCacheError if the image does not have this layout.
    """
    if not matches_layout(image, layout):
        raise DataCacheError(
            f"the image {image} was laid out by another version of this driver; "
            "remove its folder so that it is filled again"
        )
    file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        _OriginComparison(
            file, select_probes(layout, seed), open_reader, min(max_connections, max(1, len(layout.extents)))
        ).run()
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


class _OriginComparison:
    """Compares probes in several threads that share one queue; the first error ends all."""

    def __init__(
        self, image: int, probes: Iterator[Probe], open_reader: OpenReader, max_connections: int
    ) -> None:
        self._image, self._probes = image, enumerate(probes)
        self._lock = threading.Lock()
        self._stop_event = threading.Event()
        self._error: BaseException | None = None
        self._gate = RequestGate(AdaptiveConcurrency(max_connections, PROBE_BYTES), self._sleep)
        self._readers = [RetryingReader(open_reader, self._gate) for _ in range(max_connections)]

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._run_reader, args=(reader,), name="verify", daemon=True)
            for reader in self._readers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_POLL_INTERVAL)
                self._gate.adapt(sum(reader.fetched_bytes for reader in self._readers))
        if self._error:
            raise self._error

    def _run_reader(self, reader: RetryingReader) -> None:
        try:
            with reader:
                self._compare(reader)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            self._stop_event.set()

    def _compare(self, reader: RetryingReader) -> None:
        buffer = memoryview(bytearray(PROBE_BYTES))
        # Probes of a file are in ascending order, so an origin that ignores ranges has to send each file only
        # once.
        while (probe := self._take_probe(reader)) is not None and not self._stop_event.is_set():
            part = buffer[: probe.length]
            reader.read_into(probe.extent.entry, probe.offset, part)
            if part != os.pread(self._image, probe.length, probe.extent.offset + probe.offset):
                raise _mismatch_error(probe.extent.entry)

    def _take_probe(self, reader: RetryingReader) -> Probe | None:
        with self._lock:
            # The probe's number is the rank: see RequestGate.permit.
            reader.rank, probe = next(self._probes, (0, None))
            return probe

    def _sleep(self, seconds: float) -> None:
        self._stop_event.wait(seconds)
        if self._error:
            raise self._error


def _mismatch_error(entry: Entry) -> CorruptContent:
    return CorruptContent(
        f"the origin does not send the bytes of {entry.path!r} that its listing names ({entry.digest}); "
        "check the origin or the mirror in front of it, then create the cache again"
    )
