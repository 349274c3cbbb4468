"""The beginning of a fill: a partial image is there, and what other images hold of it is in it, before the origin is asked for the rest."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from csi.images.layout.chunks import ChunkPlan
from csi.images.layout.erofs import aligned
from csi.images.layout.layout import Extent, Layout
from csi.images.node_store.journal import Journal
from csi.images.node_store.partial_image import PartialImage, Range, fault
from csi.images.node_store.records import ImagePaths
from csi.images.reuse.copy_runs import Copier, shares_extents
from csi.images.reuse.extents import Run, runs

log = logging.getLogger("datacache.fill")

_SYNC_SECONDS = 1.0
_SYNC_BYTES = 256 * 1024 * 1024
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def begin(
    layout: Layout, partial: Path, journal: Journal, donors: Sequence[ImagePaths], tell: Callable[[int, int], None], check: Callable[[], None]
) -> int:
    """See to a partial image at `partial` that holds all that `journal` says, and what `donors` have of the rest; bytes of files copied in all.

    Blocks that will be shared are not allocated first: the file system would reserve them twice. `tell` is called with the
    bytes of files that are there and those of them that were copied, `check` often: it raises to stop. Raises NoSpace and
    DataCacheError; a donor that cannot be read only costs a fetch.
    """
    if not journal.begun or not PartialImage.is_whole(partial, layout.size):
        journal.restart()
    # Before the journal's end all is there, whether fetched or copied.
    behind = [extent.offset for extent in layout.extents if extent.offset + extent.entry.size <= journal.durable]
    found = runs(layout, donors, journal.copied.union(behind)) if donors else []
    _allocate(layout, partial, journal, found)
    count = _Count(layout, journal, tell)
    try:
        if found:
            with Copier(partial) as copier:
                _copy(found, copier, count, check)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise fault(error, partial, layout.size) from error
        log.warning("what other images hold could not be copied, it is fetched", extra={"fields": {"reason": error.strerror}})
    return sum(extent.entry.size for extent in layout.extents if extent.offset in journal.copied)


def _allocate(layout: Layout, partial: Path, journal: Journal, found: Sequence[Run]) -> None:
    wanted = chain.from_iterable(run.extents for run in found)
    if not journal.begun:
        shared = bool(found) and shares_extents(found[0].donor, partial.parent)
        PartialImage.create(partial, layout.size, _gaps(layout, {extent.offset for extent in wanted}) if shared else None)
    elif journal.copied:
        # What an earlier fill meant to share may have nobody to share it with now.
        PartialImage.allocate(partial, layout.size, _gaps(layout, journal.copied.union(extent.offset for extent in wanted)))


def _gaps(layout: Layout, shared: set[int]) -> Iterator[Range]:
    """All of the image but the files that begin at the bytes in `shared`."""
    begin = 0
    for extent in layout.extents:
        if extent.offset in shared:
            if begin < extent.offset:
                yield begin, extent.offset
            begin = extent.offset + aligned(extent.entry.size)
    if begin < layout.size:
        yield begin, layout.size


class _Count:
    """What is there, for the journal and for who looks on."""

    def __init__(self, layout: Layout, journal: Journal, tell: Callable[[int, int], None]) -> None:
        self._journal, self._tell = journal, tell
        self._fetched = ChunkPlan(layout, copied=journal.copied).content_before(journal.durable)
        self._fresh: list[Extent] = []
        self.copied = sum(extent.entry.size for extent in layout.extents if extent.offset in journal.copied)

    def tell(self, more: int = 0) -> None:
        """Say how much there is, with `more` bytes of files that are on their way."""
        self._tell(self._fetched + self.copied + more, self.copied + more)

    def done(self, run: Run) -> None:
        """The run is copied, but not on disk for sure."""
        self._fresh += run.extents
        self.copied += run.content_bytes

    def synced(self) -> None:
        """All runs done are on disk."""
        self._journal.append_copied(extent.offset for extent in self._fresh)
        self._fresh.clear()


def _copy(found: Sequence[Run], copier: Copier, count: _Count, check: Callable[[], None]) -> None:
    pending, since = 0, time.monotonic()
    for run in found:
        moved = 0
        for step in copier.copy(run.donor, run.source, run.target, run.length):
            check()
            moved, pending = moved + step, pending + step
            count.tell(min(moved, run.content_bytes))
            if pending >= _SYNC_BYTES or time.monotonic() - since >= _SYNC_SECONDS:
                copier.sync()
                count.synced()
                pending, since = 0, time.monotonic()
        count.done(run)
    copier.sync()
    count.synced()
    count.tell()
