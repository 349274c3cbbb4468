"""The start of a fill.

Creates the partial image and copies into it what other images have, before the rest is fetched.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from csi.images.layout.chunks import ChunkPlan
from csi.images.layout.erofs import align
from csi.images.layout.layout import Extent, Layout
from csi.images.node_store.journal import Journal
from csi.images.node_store.partial_image import ByteRange, PartialImage, image_io_error
from csi.images.node_store.records import ImagePaths
from csi.images.reuse.copy_runs import RunCopier, can_share_extents
from csi.images.reuse.extents import CopyRun, find_copy_runs

log = logging.getLogger("datacache.fill")

# Seconds and bytes after which copies are synced and recorded in the journal: what a kill can cost.
_SYNC_INTERVAL = 1.0
_MAX_UNSYNCED_BYTES = 256 * 1024 * 1024
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def prepare_partial_image(
    layout: Layout,
    partial: Path,
    journal: Journal,
    reuse_candidates: Sequence[ImagePaths],
    on_progress: Callable[[int, int], None],
    check_stopped: Callable[[], None],
) -> int:
    """Prepare the partial image: what `journal` records, plus what `reuse_candidates` have of the rest.

    Returns the total bytes of copied files. Blocks that will be shared are not allocated first: the file
    system would reserve them twice. `on_progress` is called with the bytes of files present and those of them
    that were copied; `check_stopped` is called often and raises to stop. Raises NoSpace and DataCacheError; a
    candidate that cannot be read only costs a fetch.
    """
    if not journal.has_records or not PartialImage.exists_with_size(partial, layout.size):
        journal.reset()
    # All files that end before `durable_bytes` are present, whether fetched or copied.
    durable_offsets = [
        extent.offset
        for extent in layout.extents
        if extent.offset + extent.entry.size <= journal.durable_bytes
    ]
    copy_runs = (
        find_copy_runs(layout, reuse_candidates, journal.copied_offsets.union(durable_offsets))
        if reuse_candidates
        else []
    )
    _allocate(layout, partial, journal, copy_runs)
    progress = _CopyProgress(layout, journal, on_progress)
    try:
        if copy_runs:
            with RunCopier(partial) as copier:
                _copy_runs(copy_runs, copier, progress, check_stopped)
    except OSError as error:
        if error.errno in _DISK_FULL_ERRNOS:
            raise image_io_error(error, partial, layout.size) from error
        log.warning(
            "copying from other images failed; fetching instead",
            extra={"fields": {"reason": error.strerror}},
        )
    return sum(extent.entry.size for extent in layout.extents if extent.offset in journal.copied_offsets)


def _allocate(layout: Layout, partial: Path, journal: Journal, copy_runs: Sequence[CopyRun]) -> None:
    extents = chain.from_iterable(run.extents for run in copy_runs)
    if not journal.has_records:
        shared = bool(copy_runs) and can_share_extents(copy_runs[0].source_path, partial.parent)
        PartialImage.create(
            partial,
            layout.size,
            _unshared_ranges(layout, {extent.offset for extent in extents}) if shared else None,
        )
    elif journal.copied_offsets:
        # An earlier fill left blocks unallocated to share them; the image to share them with may be gone now.
        PartialImage.allocate(
            partial,
            layout.size,
            _unshared_ranges(layout, journal.copied_offsets.union(extent.offset for extent in extents)),
        )


def _unshared_ranges(layout: Layout, shared: set[int]) -> Iterator[ByteRange]:
    """Yield all of the image except the files at the offsets in `shared`."""
    begin = 0
    for extent in layout.extents:
        if extent.offset in shared:
            if begin < extent.offset:
                yield begin, extent.offset
            begin = extent.offset + align(extent.entry.size)
    if begin < layout.size:
        yield begin, layout.size


class _CopyProgress:
    """Copied bytes, for the journal and for progress reports."""

    def __init__(self, layout: Layout, journal: Journal, on_progress: Callable[[int, int], None]) -> None:
        self._journal, self._on_progress = journal, on_progress
        self._fetched_bytes = ChunkPlan(layout, copied_offsets=journal.copied_offsets).content_bytes_before(
            journal.durable_bytes
        )
        self._unsynced: list[Extent] = []
        self.copied_bytes = sum(
            extent.entry.size for extent in layout.extents if extent.offset in journal.copied_offsets
        )

    def report(self, in_flight_bytes: int = 0) -> None:
        """Report the bytes present, plus `in_flight_bytes` of the run being copied."""
        self._on_progress(
            self._fetched_bytes + self.copied_bytes + in_flight_bytes, self.copied_bytes + in_flight_bytes
        )

    def add_run(self, run: CopyRun) -> None:
        """Record that the run is copied, though not yet synced."""
        self._unsynced += run.extents
        self.copied_bytes += run.content_bytes

    def mark_synced(self) -> None:
        """Record in the journal that all finished runs are synced."""
        self._journal.append_copied(extent.offset for extent in self._unsynced)
        self._unsynced.clear()


def _copy_runs(
    copy_runs: Sequence[CopyRun],
    copier: RunCopier,
    progress: _CopyProgress,
    check_stopped: Callable[[], None],
) -> None:
    unsynced_bytes, synced_at = 0, time.monotonic()
    for run in copy_runs:
        # Syncs in the middle of a run cover earlier runs only: a run counts as copied when all of it is.
        copied_bytes = 0
        for step in copier.copy(run.source_path, run.source_offset, run.target_offset, run.length):
            check_stopped()
            copied_bytes, unsynced_bytes = copied_bytes + step, unsynced_bytes + step
            progress.report(min(copied_bytes, run.content_bytes))
            if unsynced_bytes >= _MAX_UNSYNCED_BYTES or time.monotonic() - synced_at >= _SYNC_INTERVAL:
                copier.sync()
                progress.mark_synced()
                unsynced_bytes, synced_at = 0, time.monotonic()
        progress.add_run(run)
    copier.sync()
    progress.mark_synced()
    progress.report()
