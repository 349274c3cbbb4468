"""Which files of a new image other images hold already, by the origin's own digests: arithmetic over layouts, no byte is copied here."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from csi.errors import DataCacheError
from csi.images.layout.erofs import align
from csi.images.layout.layout import Extent, Layout, build_layout, matches_layout
from csi.images.node_store.records import ImagePaths
from csi.manifest.manifest import Manifest

ORIGIN_DIGEST_PREFIXES = ("sha256:", "git:", "token:")
"""Digests that an origin gave. One that a user gave says what the bytes should be, not whose they are."""
TARGET_RUN_BYTES = 64 * 1024 * 1024
"""A run of several files ends at the first file that makes it so long."""


class CopyRun(NamedTuple):
    """Files that follow each other in the new image and in the image at `source_path` alike: `length` bytes, whole blocks.

    They stand from byte `source_offset` of the donor on and are wanted from byte `target_offset` on. `extents` are those of the new image.
    """

    source_path: Path
    source_offset: int
    target_offset: int
    length: int
    extents: list[Extent]

    @property
    def content_bytes(self) -> int:
        """Bytes of files, without what pads them."""
        return sum(extent.entry.size for extent in self.extents)


def find_copy_runs(
    layout: Layout, reuse_candidates: Iterable[ImagePaths], present_offsets: Container[int] = ()
) -> list[CopyRun]:
    """What can be copied to the image of `layout`, in its order, but for the files whose image byte is `present_offsets` already.

    A donor that is damaged, gone, or laid out by another version gives nothing.
    """
    targets_by_content: dict[tuple[str, int], list[int]] = {}
    for extent in layout.extents:
        if extent.entry.digest.startswith(ORIGIN_DIGEST_PREFIXES) and extent.offset not in present_offsets:
            targets_by_content.setdefault((extent.entry.digest, extent.entry.size), []).append(extent.offset)
    matches: dict[int, tuple[Path, int]] = {}
    for candidate in reuse_candidates:
        for extent in _read_extents(candidate) if targets_by_content else ():
            for target in targets_by_content.pop((extent.entry.digest, extent.entry.size), ()):
                matches[target] = (candidate.image, extent.offset)
    return list(_join_runs(layout, matches))


def _read_extents(candidate: ImagePaths) -> tuple[Extent, ...]:
    try:
        with candidate.manifest.open("rb") as stream:
            layout = build_layout(Manifest.read(stream))
        return layout.extents if matches_layout(candidate.image, layout) else ()
    except (OSError, DataCacheError):
        return ()


def _join_runs(layout: Layout, matches: dict[int, tuple[Path, int]]) -> Iterator[CopyRun]:
    extents: list[Extent] = []
    source_path, source_offset, length = Path(), 0, 0
    for extent in layout.extents:
        if extent.offset not in matches:
            continue
        match_source = matches[extent.offset]
        if extents and (
            length >= TARGET_RUN_BYTES
            or match_source != (source_path, source_offset + length)
            or extent.offset != extents[0].offset + length
        ):
            yield CopyRun(source_path, source_offset, extents[0].offset, length, extents)
            extents = []
        if not extents:
            (source_path, source_offset), length = match_source, 0
        extents.append(extent)
        length += align(extent.entry.size)
    if extents:
        yield CopyRun(source_path, source_offset, extents[0].offset, length, extents)
