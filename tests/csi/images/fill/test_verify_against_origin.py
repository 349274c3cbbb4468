"""What is compared of an image: some of every file, where nobody can foresee it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.errors import CorruptContent, DataCacheError, PermissionDenied
from csi.images.fill.verify_against_origin import (
    LARGE_FILE_BYTES,
    PROBE_BYTES,
    PROBES_PER_LARGE_FILE,
    select_probes,
    verify_against_origin,
)
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import Entry, Manifest, build_manifest
from tests.csi.images.origin import FakeOrigin
from tests.csi.images.revisions import MIB, Image, sealed
from tests.csi.images.trees import file, manifests

SEED = b"s" * 32


@given(manifest=manifests(), seed=st.binary(min_size=1, max_size=64))
def test_every_file_with_bytes_is_probed_within_its_bounds(manifest: Manifest, seed: bytes) -> None:
    chosen = list(select_probes(build_layout(manifest), seed))
    assert {p.extent.entry.path for p in chosen} == {entry.path for entry in manifest.files if entry.size}
    for probe in chosen:
        assert probe.length == min(PROBE_BYTES, probe.extent.entry.size)
        assert 0 <= probe.offset <= probe.extent.entry.size - probe.length


def test_large_files_are_probed_in_several_places_that_the_seed_alone_decides() -> None:
    layout = build_layout(
        build_manifest([file("large", LARGE_FILE_BYTES + 1), file("small", LARGE_FILE_BYTES)], {})
    )
    one, same, other = (
        [(p.extent.entry.path, p.offset) for p in select_probes(layout, seed)]
        for seed in (SEED, SEED, b"o" * 32)
    )
    assert one == same
    assert not set(one) & set(other)
    assert [path for path, _ in one] == ["large"] * PROBES_PER_LARGE_FILE + ["small"]
    drawn = [next(select_probes(layout, b"%d" % n)).offset for n in range(100)]
    assert max(drawn) - min(drawn) > LARGE_FILE_BYTES / 4, "any part of the file may be asked for"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return sealed(
        tmp_path / "image",
        {
            **{f"small/{n}": os.urandom(1 + 97 * n) for n in range(200)},
            "empty": b"",
            "large": os.urandom(3 * MIB),
        },
    )


def test_an_origin_that_has_the_bytes_is_read_a_little_over_several_connections(image: Image) -> None:
    origin = FakeOrigin(contents=image.contents)
    verify_against_origin(image.layout, image.paths.image, origin.open, SEED, max_connections=3)
    assert 1 <= origin.opened == origin.closed <= 3
    assert origin.asked.keys() == image.contents.keys() - {"empty"}
    assert origin.bytes <= PROBE_BYTES * (200 + PROBES_PER_LARGE_FILE)


@pytest.mark.parametrize("path", ["small/0", "small/150", "large"])
def test_one_file_that_differs_is_named(image: Image, path: str) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == path:
            buffer[-1] ^= 1

    with pytest.raises(CorruptContent, match=path):
        verify_against_origin(
            image.layout,
            image.paths.image,
            FakeOrigin(fault, contents=image.contents).open,
            SEED,
            max_connections=3,
        )


def test_a_file_that_cannot_be_read_ends_it_with_the_readers_own_error(image: Image) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == "small/7":
            raise PermissionDenied("not small/7")

    origin = FakeOrigin(fault, contents=image.contents)
    with pytest.raises(PermissionDenied, match="small/7"):
        verify_against_origin(image.layout, image.paths.image, origin.open, SEED, max_connections=3)
    assert origin.opened == origin.closed


def test_an_image_that_is_laid_out_otherwise_cannot_be_compared(image: Image) -> None:
    with pytest.raises(DataCacheError, match="another version"):
        verify_against_origin(
            build_layout(build_manifest([file("x", 5)], {})), image.paths.image, image.origin.open, SEED
        )
