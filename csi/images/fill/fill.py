"""The fill: reads a layout's bytes into a partial image and verifies each file; then seals the image.

A few threads read chunks in order, straight into aligned buffers, and write them at their offsets, bypassing
the page cache. One thread hashes the same buffers in file order. The calling thread syncs, writes the journal
and reports progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from csi.errors import DataCacheError, FillStopped
from csi.images.fill.adaptive_concurrency import AdaptiveConcurrency
from csi.images.fill.buffer_ring import BufferRing, ChunkJob
from csi.images.fill.repair import hash_from_disk, refetch
from csi.images.fill.request_gate import RequestGate
from csi.images.fill.retrying_reader import RetryingReader
from csi.images.fill.verify_digests import DigestVerifier, check_empty_files
from csi.images.layout.chunks import CHUNK_BYTES, ChunkPlan, Piece, zero_padding
from csi.images.layout.layout import Extent, Layout
from csi.images.node_store.journal import Journal
from csi.images.node_store.partial_image import PartialImage
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress, ProgressMeter
from csi.images.reuse.prepare import prepare_partial_image
from csi.linux.durable_files import fsync_file, fsync_folder, rename_and_sync
from csi.manifest.manifest import Entry
from csi.manifest.reader import SMALL_FILE, OpenReader

CHECKPOINT_CHUNKS = 4
"""Number of finished chunks (16 MiB) after which they are synced and recorded in the journal."""
CHECKPOINT_INTERVAL = 1.0
"""Seconds after which all finished chunks are synced and recorded, however few."""
MAX_UNSYNCED_CHUNKS = 16
"""What a kill may cost in addition to the chunks being read: 64 MiB."""
# Seconds between two looks at progress, throughput and stop requests.
_POLL_INTERVAL = 0.1


def fill(  # noqa: PLR0913 - the one entry to a fill, all but three with defaults
    layout: Layout,
    partial: Path,
    journal: Path,
    open_reader: OpenReader,
    *,
    max_connections: int = 4,
    chunk_bytes: int = CHUNK_BYTES,
    reuse_candidates: Sequence[ImagePaths] = (),
    on_progress: Callable[[FillProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Write the image of `layout` to `partial`, complete, verified and durable.

    Continues from what `journal` records.

    Files that an image of `reuse_candidates` (sealed, of the same source, held by the caller) has with the
    same digest are copied from it. At most `max_connections` readers (at least 1) are opened, as many as
    increase throughput. Memory is one and a half buffers of `chunk_bytes` (a multiple of 4096) for each, and
    four more. `on_progress` and `should_stop` are called in the calling thread.

    Raises FillStopped if `should_stop` says so, CorruptContent if a file is wrong twice, NoSpace, and the
    errors of the reader; finished work is kept.
    """
    check_empty_files(layout.manifest)
    meter = ProgressMeter(layout.manifest.content_bytes, on_progress)

    def check_stopped() -> None:
        if should_stop is not None and should_stop():
            raise FillStopped(
                "the fill was stopped; its data is kept, and the next fill continues from there"
            )

    with Journal(journal, layout, chunk_bytes) as log:
        copied = prepare_partial_image(
            layout,
            partial,
            log,
            reuse_candidates,
            lambda done, copied: meter.update(done, 0, copied),
            check_stopped,
        )
        with PartialImage(partial, layout.size) as image:
            plan = ChunkPlan(layout, chunk_bytes, log.copied_offsets)
            _ImageFill(plan, image, log, open_reader, max_connections, copied).run(meter, check_stopped)


def seal(partial: Path, final: Path, journal: Path) -> None:
    """Turn the filled `partial` into the read-only image `final`, durably, then remove the journal.

    Idempotent.
    """
    # In this order: a rename must not become durable before the data, and the journal is needed until then.
    if partial.exists():
        fsync_file(partial)
        partial.chmod(0o400)
        rename_and_sync(partial, final)
    elif not final.exists():
        raise DataCacheError(f"there is no partial image {partial} to seal; fill it first")
    journal.unlink(missing_ok=True)
    fsync_folder(journal.parent)


class _ImageFill:
    """The threads and buffers of one fill."""

    def __init__(
        self,
        plan: ChunkPlan,
        image: PartialImage,
        journal: Journal,
        open_reader: OpenReader,
        max_connections: int,
        copied_bytes: int,
    ) -> None:
        self._plan = plan
        self._image = image
        self._journal = journal
        self._copied_bytes = copied_bytes
        self._resumed_at = max(journal.durable_bytes, len(plan.metadata))
        first = self._plan.index_at(self._resumed_at)
        concurrency = AdaptiveConcurrency(max_connections, plan.chunk_bytes)
        self._ring = BufferRing(
            self._plan,
            first,
            # More buffers than readers: some are being hashed and written while others are filled.
            max_connections + max_connections // 2 + 4,
            concurrency.reader_limit + MAX_UNSYNCED_CHUNKS,
        )
        self._gate = RequestGate(concurrency, self._ring.sleep)
        # Reader 0 belongs to the hashing thread, which refetches files that were wrong.
        self._readers = [RetryingReader(open_reader, self._gate) for _ in range(max_connections + 1)]
        self._threads: dict[int, threading.Thread] = {}
        self._idle: set[int] = set()
        self._synced_at = time.monotonic()

    def run(self, meter: ProgressMeter, check_stopped: Callable[[], None]) -> None:
        self._image.write_metadata(self._plan.metadata)
        self._start_readers()
        self._start_thread(self._hash_chunks, 0, "fill hash")
        try:
            self._supervise(meter, check_stopped)
        except BaseException as error:
            self._ring.fail(error)
            raise
        finally:
            # After an error too: what is written and hashed by now need not be fetched again.
            for thread in self._threads.values():
                thread.join()
            self._checkpoint()
        self._report(meter, final=True)

    def _report(self, meter: ProgressMeter, final: bool = False) -> None:
        meter.update(
            self._copied_bytes + self._ring.content_bytes_done,
            self._count_fetched_bytes(),
            self._copied_bytes,
            final=final,
        )

    def _start_readers(self) -> None:
        for number in range(1, self._gate.reader_limit + 1):
            # A reader beyond the limit has ended; if the limit rises again, it gets a new thread.
            if number not in self._threads or (number in self._idle and not self._threads[number].is_alive()):
                self._idle.discard(number)
                self._start_thread(self._read_chunks, number, "fill read")

    def _start_thread(self, work: Callable[[RetryingReader], None], number: int, name: str) -> None:
        reader = self._readers[number]

        def run() -> None:
            try:
                with reader:
                    work(reader)
            except BaseException as error:
                self._ring.fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads[number] = thread

    def _supervise(self, meter: ProgressMeter, check_stopped: Callable[[], None]) -> None:
        is_finished = False
        while not is_finished:
            is_finished = self._ring.wait_done(
                self._plan.index_at(self._journal.durable_bytes) + CHECKPOINT_CHUNKS, _POLL_INTERVAL
            )
            self._report(meter)
            self._adapt_readers()
            if not is_finished:
                check_stopped()
            if self._is_checkpoint_due():
                self._checkpoint()

    def _adapt_readers(self) -> None:
        self._gate.adapt(self._count_fetched_bytes())
        self._ring.set_max_unsynced(self._gate.reader_limit + MAX_UNSYNCED_CHUNKS)
        self._start_readers()

    def _is_checkpoint_due(self) -> bool:
        unsynced_chunks = self._ring.done_chunks - self._plan.index_at(self._journal.durable_bytes)
        return (
            unsynced_chunks >= CHECKPOINT_CHUNKS or time.monotonic() - self._synced_at >= CHECKPOINT_INTERVAL
        )

    def _checkpoint(self) -> None:
        """Sync, then record in the journal, the chunks finished before the sync began."""
        # Read before the sync: a chunk that finishes during it is not covered by it.
        done = self._ring.done_chunks
        self._synced_at = time.monotonic()
        if self._plan.get_offset(done) == self._journal.durable_bytes:
            return
        self._image.sync()
        self._journal.append(self._plan.get_offset(done))
        self._ring.mark_durable(done)

    def _count_fetched_bytes(self) -> int:
        return sum(reader.fetched_bytes for reader in self._readers)

    def _read_chunks(self, reader: RetryingReader) -> None:
        number = self._readers.index(reader)
        while number <= self._gate.reader_limit:
            job = self._ring.take()
            if job is None:
                return
            view = job.view
            reader.rank = job.chunk.index
            self._read_pieces(reader, job.chunk.pieces, view)
            # Handed to the hashing thread first, which works while this one writes.
            self._ring.add_filled(job)
            for start, end in job.chunk.spans:
                self._image.write(job.chunk.offset + start, view[start:end])
            self._ring.mark_written(job)
        self._idle.add(number)

    def _read_pieces(self, reader: RetryingReader, pieces: Sequence[Piece], view: memoryview) -> None:
        reader.read_many(
            [
                (piece.entry, view[piece.start : piece.start + piece.length])
                for piece in pieces
                if _is_small_file(piece)
            ]
        )
        for piece in pieces:
            self._ring.raise_if_failed()
            end = piece.start + piece.length
            if not _is_small_file(piece):
                reader.read_into(piece.entry, piece.offset, view[piece.start : end])
            zero_padding(view, end)

    def _hash_chunks(self, reader: RetryingReader) -> None:
        verifier = DigestVerifier()
        # Hashes of a partly fetched file are not stored, so its first part is read back from the disk.
        straddling = self._plan.find_straddling_extent(self._resumed_at)
        if straddling is not None:
            verifier.resume(
                hash_from_disk(self._image, straddling, self._resumed_at, self._ring.raise_if_failed)
            )
        for job in self._ring.iter_in_order():
            view = job.view
            for piece in job.chunk.pieces:
                if verifier.feed(piece, view[piece.start : piece.start + piece.length]):
                    self._repair(job, piece.entry, job.chunk.offset + piece.start - piece.offset, reader)

    def _repair(self, job: ChunkJob, entry: Entry, image_offset: int, reader: RetryingReader) -> None:
        # The reading thread may still be writing the wrong bytes; it must not overwrite the right ones.
        self._ring.wait_written(job)
        refetch(self._image, Extent(entry, image_offset), reader, self._ring.raise_if_failed)


def _is_small_file(piece: Piece) -> bool:
    """Return whether the piece is a whole file that may be requested in a batch."""
    return piece.length == piece.entry.size <= SMALL_FILE
