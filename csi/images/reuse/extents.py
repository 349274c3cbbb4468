"""Search for files of a new image in existing images by the origin's digests: pure computation on layouts."""

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
"""Digests given by an origin. One given by a user says what the bytes should be, not whose they are."""
TARGET_RUN_BYTES = 64 * 1024 * 1024
"""Length at which a run of several files ends, after the file that reaches it."""


class CopyRun(NamedTuple):
    """Files that are adjacent both in the new image and in the image at `source_path`.

    They are `length` bytes, whole blocks, at byte `source_offset` of the source, and go to byte
    `target_offset`. `extents` are those of the new image.
    """

    source_path: Path
    source_offset: int
    target_offset: int
    length: int
    extents: list[Extent]

    @property
    def content_bytes(self) -> int:
        """Bytes of files, without padding."""
        return sum(extent.entry.size for extent in self.extents)


def find_copy_runs(
    layout: Layout, reuse_candidates: Iterable[ImagePaths], present_offsets: Container[int] = ()
) -> list[CopyRun]:
    """Find what can be copied into the image of `layout`, in its order, except files at `present_offsets`.

    A candidate that is damaged, gone, or laid out by another version is skipped.
    """
    targets_by_content: dict[tuple[str, int], list[int]] = {}
    for extent in layout.extents:
        if extent.entry.digest.startswith(ORIGIN_DIGEST_PREFIXES) and extent.offset not in present_offsets:
            targets_by_content.setdefault((extent.entry.digest, extent.entry.size), []).append(extent.offset)
    # Target offset -> where its bytes are. The first candidate that has a file serves all targets with that
    # content.
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
        # A run continues if the next file is adjacent on both sides.
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
