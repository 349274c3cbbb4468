"""Which files of a new image other images hold already, by the origin's own digests: arithmetic over layouts, no byte is copied here."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from csi.errors import DataCacheError
from csi.images.layout.erofs import aligned
from csi.images.layout.layout import Extent, Layout, is_laid_out, lay_out
from csi.images.node_store.records import ImagePaths
from csi.manifest.manifest import Manifest

FORMS = ("sha256:", "git:", "token:")
"""Digests that an origin gave. One that a user gave says what the bytes should be, not whose they are."""
RUN_BYTES = 64 * 1024 * 1024
"""A run of several files ends at the first file that makes it so long."""


class Run(NamedTuple):
    """Files that follow each other in the new image and in the image at `donor` alike: `length` bytes, whole blocks.

    They stand from byte `source` of the donor on and are wanted from byte `target` on. `extents` are those of the new image.
    """

    donor: Path
    source: int
    target: int
    length: int
    extents: list[Extent]

    @property
    def content_bytes(self) -> int:
        """Bytes of files, without what pads them."""
        return sum(extent.entry.size for extent in self.extents)


def runs(layout: Layout, donors: Iterable[ImagePaths], there: Container[int] = ()) -> list[Run]:
    """What can be copied to the image of `layout`, in its order, but for the files whose image byte is `there` already.

    A donor that is damaged, gone, or laid out by another version gives nothing.
    """
    wanted: dict[tuple[str, int], list[int]] = {}
    for extent in layout.extents:
        if extent.entry.digest.startswith(FORMS) and extent.offset not in there:
            wanted.setdefault((extent.entry.digest, extent.entry.size), []).append(extent.offset)
    found: dict[int, tuple[Path, int]] = {}
    for donor in donors:
        for extent in _extents_of(donor) if wanted else ():
            for target in wanted.pop((extent.entry.digest, extent.entry.size), ()):
                found[target] = (donor.image, extent.offset)
    return list(_joined(layout, found))


def _extents_of(donor: ImagePaths) -> tuple[Extent, ...]:
    try:
        with donor.manifest.open("rb") as stream:
            layout = lay_out(Manifest.read(stream))
        return layout.extents if is_laid_out(donor.image, layout) else ()
    except (OSError, DataCacheError):
        return ()


def _joined(layout: Layout, found: dict[int, tuple[Path, int]]) -> Iterator[Run]:
    begun: list[Extent] = []
    donor, source, length = Path(), 0, 0
    for extent in layout.extents:
        if extent.offset not in found:
            continue
        here = found[extent.offset]
        if begun and (length >= RUN_BYTES or here != (donor, source + length) or extent.offset != begun[0].offset + length):
            yield Run(donor, source, begun[0].offset, length, begun)
            begun = []
        if not begun:
            (donor, source), length = here, 0
        begun.append(extent)
        length += aligned(extent.entry.size)
    if begun:
        yield Run(donor, source, begun[0].offset, length, begun)
