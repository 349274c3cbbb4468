"""Images that go from one image store to another, and what is said of them ahead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import CorruptContent, FillStopped, NotFound
from csi.image_store.announcements import ANNOUNCEMENTS_FOLDER, Announcement
from csi.image_store.backend import Backend
from csi.image_store.location import parse_image_store_url
from csi.image_store.store import ImageStore, open_backend
from csi.image_store.stored_image import parts_folder, unwanted_key
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest
from tests.csi.image_store.conftest import PART
from tests.csi.image_store.test_store import had_by_another_node

ANNOUNCEMENT = Announcement(
    "edc-" + "0" * 20,
    "a" * 64,
    "default",
    "/models/a",
    "s3://here/images",
    "cn-here",
    "title",
    3,
    {"team": "a"},
    "rg",
    ("team",),
)


@pytest.fixture
def target(backend: Backend) -> ImageStore:
    """Of every kind, empty."""
    return ImageStore(backend, PART)


@pytest.fixture
def source(tmp_path: Path, image: ImagePaths) -> Iterator[ImageStore]:
    """A folder that has the image."""
    (tmp_path / "source").mkdir()
    opened = open_backend(parse_image_store_url(f"file://{tmp_path}/source"), {})
    store = ImageStore(opened, PART)
    store.add(image)
    yield store
    opened.close()


def test_a_copy_has_the_same_bytes_and_says_how_far_it_is(
    source: ImageStore, target: ImageStore, image: ImagePaths, manifest: Manifest, tmp_path: Path
) -> None:
    told: list[FillProgress] = []
    source.copy_to(target, manifest.digest, told.append)
    assert target.find(manifest.digest) == source.find(manifest.digest)
    assert told[-1].bytes_done == told[-1].bytes_total
    assert had_by_another_node(target, manifest.digest, tmp_path / "other") == image.image.read_bytes()


def test_a_copy_that_was_stopped_is_no_image_and_the_next_sends_nothing_twice(
    source: ImageStore,
    target: ImageStore,
    backend: Backend,
    image: ImagePaths,
    manifest: Manifest,
    tmp_path: Path,
) -> None:
    asked = iter([False, False, False, *[True] * 99])
    with pytest.raises(FillStopped):
        source.copy_to(target, manifest.digest, should_stop=lambda: next(asked))
    assert target.find(manifest.digest) is None
    before = {one.key: one.modified_at for one in backend.list_objects(parts_folder(manifest.digest))}
    assert len(before) == 3
    source.copy_to(target, manifest.digest)
    assert {
        one.key: one.modified_at
        for one in backend.list_objects(parts_folder(manifest.digest))
        if one.key in before
    } == before
    assert had_by_another_node(target, manifest.digest, tmp_path / "other") == image.image.read_bytes()


def test_a_damaged_part_is_not_copied(
    source: ImageStore, target: ImageStore, manifest: Manifest, tmp_path: Path
) -> None:
    part = next((tmp_path / "source" / parts_folder(manifest.digest)).iterdir())
    part.write_bytes(bytes(len(part.read_bytes())))
    with pytest.raises(CorruptContent, match=f"a damaged part of image {manifest.digest[:12]}"):
        source.copy_to(target, manifest.digest)
    assert target.find(manifest.digest) is None


def test_a_copy_of_what_is_there_is_wanted_again(
    source: ImageStore, target: ImageStore, backend: Backend, manifest: Manifest
) -> None:
    source.copy_to(target, manifest.digest)
    backend.put(unwanted_key(manifest.digest), b"")
    source.copy_to(target, manifest.digest)
    assert backend.get(unwanted_key(manifest.digest)) is None


def test_what_the_source_does_not_have_is_not_found(source: ImageStore, target: ImageStore) -> None:
    with pytest.raises(NotFound, match="has no image aaaaaaaaaaaa"):
        source.copy_to(target, "a" * 64)


def test_what_is_announced_is_read_as_it_was_said_until_it_is_withdrawn(target: ImageStore) -> None:
    other = replace(ANNOUNCEMENT, id="edc-" + "1" * 20, adopted=True)
    for one in (other, ANNOUNCEMENT):
        target.announce(one)
    assert list(target.list_announcements()) == [ANNOUNCEMENT, other]
    target.withdraw(ANNOUNCEMENT)
    target.withdraw(ANNOUNCEMENT)
    assert list(target.list_announcements()) == [other]


@pytest.mark.parametrize("damage", [b"{}", b"no json", b'{"format": 1}', b"[]"])
def test_a_damaged_announcement_is_in_no_others_way_and_says_what_to_remove(
    target: ImageStore, backend: Backend, damage: bytes
) -> None:
    backend.put(f"{ANNOUNCEMENTS_FOLDER}/edc-.json", damage)
    target.announce(ANNOUNCEMENT)
    said: list[str] = []
    assert list(target.list_announcements(said.append)) == list(target.list_announcements()) == [ANNOUNCEMENT]
    assert len(said) == 1
    assert re.search(r"announced/edc-\.json is damaged .*; remove it there", said[0])


def test_announcements_are_no_images(target: ImageStore) -> None:
    target.announce(ANNOUNCEMENT)
    assert list(target.list_digests()) == target.collect((), 0.0, 2e9) == []
    assert list(target.list_announcements()) == [ANNOUNCEMENT]
