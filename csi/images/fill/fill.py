"""The fill: a layout's bytes, from a reader to a partial image, each file verified; then the seal.

A few threads read chunks in order, straight into aligned buffers, and write them to their place past the page
cache; one thread hashes the same buffers in file order; the calling thread syncs, keeps the journal and tells progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from csi.errors import DataCacheError, FillStopped
from csi.images.fill.adaptive_concurrency import Widening
from csi.images.fill.buffer_ring import Job, Ring
from csi.images.fill.fetch import PatientReader
from csi.images.fill.repair import hash_from_disk, refetch
from csi.images.fill.request_gate import Flow
from csi.images.fill.verify_digests import Verifier, check_empty_files
from csi.images.layout.chunks import CHUNK, ChunkPlan, Piece, zero_padding
from csi.images.layout.layout import Extent, Layout
from csi.images.node_store.journal import Journal
from csi.images.node_store.partial_image import PartialImage
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress, ProgressMeter
from csi.images.reuse.prepare import begin
from csi.linux.durable_files import rename_durably, sync_file, sync_folder
from csi.manifest.manifest import Entry
from csi.manifest.reader import SMALL_FILE, OpenReader

CHECKPOINT_CHUNKS = 4
"""So many chunks done (16 MiB) are synced and put into the journal, ..."""
CHECKPOINT_SECONDS = 1.0
"""... or all that are done after this time."""
AT_RISK_CHUNKS = 16
"""What a kill may cost beside the chunks that are being read: 64 MiB."""
_TICK = 0.1


def fill(
    layout: Layout,
    partial: Path,
    journal: Path,
    open_reader: OpenReader,
    *,
    connections: int = 4,
    chunk_bytes: int = CHUNK,
    donors: Sequence[ImagePaths] = (),
    progress: Callable[[FillProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Bring the image of `layout` to `partial`, whole, verified and on disk; goes on where `journal` says.

    Files that an image of `donors` (sealed, of the same source, held by the caller) has by the same digest are copied from it.
    At most `connections` readers (at least 1) are opened, as many as bring more; memory is one and a half buffers of
    `chunk_bytes` (a multiple of 4096) for each and four more. `progress` and `should_stop` are called in the calling
    thread. Raises FillStopped when told to stop, CorruptContent when a file is
    wrong twice, NoSpace, and what the reader raises; what is done by then stays.
    """
    check_empty_files(layout.manifest)
    meter = ProgressMeter(layout.manifest.content_bytes, progress)

    def check() -> None:
        if should_stop is not None and should_stop():
            raise FillStopped("the fill was told to stop; what is there stays, and the next fill goes on from there")

    with Journal(journal, layout, chunk_bytes) as log:
        copied = begin(layout, partial, log, donors, lambda done, copied: meter.update(done, 0, copied), check)
        with PartialImage(partial, layout.size) as image:
            plan = ChunkPlan(layout, chunk_bytes, log.copied)
            _Fill(layout, plan, image, log, open_reader, connections, copied).run(meter, check)


def seal(partial: Path, final: Path, journal: Path) -> None:
    """Make the filled `partial` the read-only image `final`, durably, then drop the journal. Done twice, it is done once."""
    if partial.exists():
        sync_file(partial)
        partial.chmod(0o400)
        rename_durably(partial, final)
    elif not final.exists():
        raise DataCacheError(f"there is no partial image {partial} to seal; fill it first")
    journal.unlink(missing_ok=True)
    sync_folder(journal.parent)


class _Fill:
    def __init__(
        self, layout: Layout, plan: ChunkPlan, image: PartialImage, journal: Journal, open_reader: OpenReader, connections: int, copied: int
    ) -> None:
        self._layout, self._plan, self._image, self._journal, self._copied = layout, plan, image, journal, copied
        self._resumed_at = max(journal.durable, len(layout.metadata))
        first = self._plan.index_at(self._resumed_at)
        widening = Widening(connections, plan.chunk_bytes)
        self._ring = Ring(self._plan, first, connections + connections // 2 + 4, widening.readers + AT_RISK_CHUNKS)
        self._flow = Flow(widening, self._ring.pause)
        # One more than connections: the hashing thread's own, for files that were wrong.
        self._readers = [PatientReader(open_reader, self._flow) for _ in range(connections + 1)]
        self._threads: dict[int, threading.Thread] = {}
        self._resting: set[int] = set()
        self._synced_at = time.monotonic()

    def run(self, meter: ProgressMeter, check: Callable[[], None]) -> None:
        self._image.write_metadata(self._layout.metadata)
        self._start_readers()
        self._thread(self._hash, 0, "fill hash")
        try:
            self._watch(meter, check)
        except BaseException as error:
            self._ring.fail(error)
            raise
        finally:
            for thread in self._threads.values():
                thread.join()
            self._checkpoint()
        self._tell(meter, final=True)

    def _tell(self, meter: ProgressMeter, final: bool = False) -> None:
        meter.update(self._copied + self._ring.content_done, self._fetched(), self._copied, final=final)

    def _start_readers(self) -> None:
        for number in range(1, self._flow.readers + 1):
            if number not in self._threads or (number in self._resting and not self._threads[number].is_alive()):
                self._resting.discard(number)
                self._thread(self._read, number, "fill read")

    def _thread(self, work: Callable[[PatientReader], None], number: int, name: str) -> None:
        reader = self._readers[number]

        def guarded() -> None:
            try:
                with reader:
                    work(reader)
            except BaseException as error:
                self._ring.fail(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads[number] = thread

    def _watch(self, meter: ProgressMeter, check: Callable[[], None]) -> None:
        finished = False
        while not finished:
            finished = self._ring.wait_done(self._plan.index_at(self._journal.durable) + CHECKPOINT_CHUNKS, _TICK)
            self._tell(meter)
            self._widen()
            if not finished:
                check()
            if self._is_due():
                self._checkpoint()

    def _widen(self) -> None:
        self._flow.look(self._fetched())
        self._ring.reach(self._flow.readers + AT_RISK_CHUNKS)
        self._start_readers()

    def _is_due(self) -> bool:
        behind = self._ring.done - self._plan.index_at(self._journal.durable)
        return behind >= CHECKPOINT_CHUNKS or time.monotonic() - self._synced_at >= CHECKPOINT_SECONDS

    def _checkpoint(self) -> None:
        """Sync, then write down, what was done before the sync began."""
        done = self._ring.done
        self._synced_at = time.monotonic()
        if self._plan.offset(done) == self._journal.durable:
            return
        self._image.sync()
        self._journal.append(self._plan.offset(done))
        self._ring.durable(done)

    def _fetched(self) -> int:
        return sum(reader.fetched for reader in self._readers)

    def _read(self, reader: PatientReader) -> None:
        number = self._readers.index(reader)
        while number <= self._flow.readers:
            job = self._ring.take()
            if job is None:
                return
            view = job.view
            reader.rank = job.chunk.index
            self._read_pieces(reader, job.chunk.pieces, view)
            self._ring.filled(job)
            for start, end in job.chunk.spans:
                self._image.write(job.chunk.offset + start, view[start:end])
            self._ring.wrote(job)
        self._resting.add(number)

    def _read_pieces(self, reader: PatientReader, pieces: Sequence[Piece], view: memoryview) -> None:
        reader.read_many([(piece.entry, view[piece.start : piece.start + piece.length]) for piece in pieces if _is_small(piece)])
        for piece in pieces:
            self._ring.check()
            end = piece.start + piece.length
            if not _is_small(piece):
                reader.read_into(piece.entry, piece.offset, view[piece.start : end])
            zero_padding(view, end)

    def _hash(self, reader: PatientReader) -> None:
        verifier = Verifier()
        straddling = self._plan.straddling(self._resumed_at)
        if straddling is not None:
            verifier.go_on(hash_from_disk(self._image, straddling, self._resumed_at, self._ring.check))
        for job in self._ring.in_order():
            view = job.view
            for piece in job.chunk.pieces:
                if verifier.feed(piece, view[piece.start : piece.start + piece.length]):
                    self._repair(job, piece.entry, job.chunk.offset + piece.start - piece.offset, reader)

    def _repair(self, job: Job, entry: Entry, at: int, reader: PatientReader) -> None:
        # The wrong bytes may still be on their way into the file.
        self._ring.wait_written(job)
        refetch(self._image, Extent(entry, at), reader, self._ring.check)


def _is_small(piece: Piece) -> bool:
    """Whether this is a whole file that may be asked for with others."""
    return piece.length == piece.entry.size <= SMALL_FILE
