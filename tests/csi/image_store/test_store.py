"""Images that outlive their origins: brought once, whole or not there, the same bytes for every node.

Gone when nobody wants them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import CorruptContent, FillStopped, NotFound
from csi.image_store.backend import Backend
from csi.image_store.store import ImageStore
from csi.image_store.stored_image import index_key, manifest_key, parts_folder
from csi.images.fill.fill import seal
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest
from tests.csi.image_store.conftest import PART, Opens, sealed, tree

DAY = 86_400.0


@pytest.fixture
def store(backend: Backend) -> ImageStore:
    return ImageStore(backend, PART)


def had_by_another_node(store: ImageStore, digest: str, folder: Path) -> bytes:
    stored = store.find(digest)
    assert stored
    folder.mkdir(exist_ok=True)
    paths = ImagePaths(folder)
    store.fill(stored, store.read_manifest(digest), paths, 3)
    seal(paths.partial, paths.image, paths.journal)
    return paths.image.read_bytes()


def test_another_node_has_the_same_bytes(
    store: ImageStore, image: ImagePaths, manifest: Manifest, tmp_path: Path
) -> None:
    told: list[FillProgress] = []
    stored = store.add(image, told.append)
    assert stored == store.find(manifest.digest)
    assert list(store.list_images()) == [stored]
    assert stored.access == manifest.access
    assert stored.content_bytes == manifest.content_bytes
    assert told[-1].bytes_done == told[-1].bytes_total == image.image.stat().st_size - stored.data_offset
    assert store.read_manifest(manifest.digest) == manifest
    assert had_by_another_node(store, manifest.digest, tmp_path / "other") == image.image.read_bytes()


def test_an_image_that_is_there_is_not_sent_again(
    store: ImageStore, backend: Backend, image: ImagePaths
) -> None:
    first = store.add(image)
    image.image.unlink()
    assert store.add(image) == first


def test_what_is_not_there_is_not_found(store: ImageStore) -> None:
    assert store.find("a" * 64) is None
    with pytest.raises(NotFound):
        store.read_manifest("a" * 64)


@pytest.mark.parametrize("puts", [0, 1, 4, 9])
def test_a_process_that_is_killed_leaves_what_the_next_goes_on_with(
    opens: Opens, image: ImagePaths, manifest: Manifest, tmp_path: Path, puts: int
) -> None:
    """Before one more put than `puts`, the process is gone: what is there is no image until all of it is."""
    killed = [
        sys.executable,
        "-m",
        "tests.csi.image_store.killed",
        opens.url,
        json.dumps(opens.secrets),
        str(image.folder),
        str(puts),
    ]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    backend = opens()
    store = ImageStore(backend, PART)
    assert store.find(manifest.digest) is None
    before = {one.key: one.modified_at for one in backend.list_objects(parts_folder(manifest.digest))}
    store.add(image)
    assert {
        one.key: one.modified_at
        for one in backend.list_objects(parts_folder(manifest.digest))
        if one.key in before
    } == before
    assert had_by_another_node(store, manifest.digest, tmp_path / "other") == image.image.read_bytes()
    backend.close()


def test_two_who_bring_one_image_leave_one(
    opens: Opens, image: ImagePaths, manifest: Manifest, tmp_path: Path
) -> None:
    together = threading.Barrier(2)

    def bring() -> None:
        backend = opens()
        together.wait()
        ImageStore(backend, PART).add(image)
        backend.close()

    threads = [threading.Thread(target=bring) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = ImageStore(opens(), PART)
    assert len(list(store.list_images())) == 1
    assert had_by_another_node(store, manifest.digest, tmp_path / "other") == image.image.read_bytes()


def test_a_stop_ends_it_and_what_is_there_stays(
    store: ImageStore, backend: Backend, image: ImagePaths, manifest: Manifest
) -> None:
    with pytest.raises(FillStopped):
        store.add(image, should_stop=lambda: bool(list(backend.list_objects(parts_folder(manifest.digest)))))
    assert store.find(manifest.digest) is None
    assert list(backend.list_objects(parts_folder(manifest.digest)))


def test_a_fill_that_was_cut_goes_on(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend, tmp_path: Path
) -> None:
    """The parts that were on disk are not asked for again: they may even be gone."""
    stored = store.add(image)
    folder = tmp_path / "other"
    folder.mkdir()
    paths = ImagePaths(folder)
    store.fill(stored, manifest, paths, 1)
    for one in list(backend.list_objects(parts_folder(manifest.digest))):
        backend.delete(one.key)
    store.fill(stored, manifest, paths, 1)
    seal(paths.partial, paths.image, paths.journal)
    assert paths.image.read_bytes() == image.image.read_bytes()


def test_a_part_with_other_bytes_is_told(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend, tmp_path: Path
) -> None:
    stored = store.add(image)
    backend.put(f"{parts_folder(manifest.digest)}/{stored.parts[1]}", bytes(PART))
    with pytest.raises(CorruptContent):
        had_by_another_node(store, manifest.digest, tmp_path / "other")


def test_a_record_of_an_image_that_is_laid_out_otherwise_is_told(
    store: ImageStore, image: ImagePaths, manifest: Manifest, tmp_path: Path
) -> None:
    stored = store.add(image)
    with pytest.raises(CorruptContent, match="another version"):
        store.fill(replace(stored, layout_format=1), manifest, ImagePaths(tmp_path), 1)
    with pytest.raises(CorruptContent, match="another version"):
        store.fill(stored, tree(10), ImagePaths(tmp_path), 1)


@pytest.mark.parametrize("damage", [b"{}", b"no json", b'{"format": 2}', b"[]"])
def test_a_damaged_record_says_what_to_remove(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend, damage: bytes
) -> None:
    store.add(image)
    backend.put(index_key(manifest.digest), damage)
    with pytest.raises(CorruptContent, match=f"remove images/{manifest.digest}"):
        store.find(manifest.digest)


@pytest.mark.parametrize(
    "damage",
    [
        {"part_bytes": 0},
        {"content_bytes": "much"},
        {"access": ["repoId"]},
        {"access": {"repoId": 1}},
        {"stored_at": 1e300},
        {"stored_at": "now"},
    ],
)
def test_a_record_whose_fields_cannot_be_is_damaged_too(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend, damage: dict[str, object]
) -> None:
    kept = json.loads(store.add(image).encode())
    backend.put(index_key(manifest.digest), json.dumps({**kept, **damage}).encode())
    with pytest.raises(CorruptContent, match="damaged"):
        store.find(manifest.digest)


def test_a_manifest_of_another_image_is_told(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend, tmp_path: Path
) -> None:
    store.add(image)
    backend.put(manifest_key(manifest.digest), sealed(tmp_path / "foreign", tree(1)).manifest.read_bytes())
    with pytest.raises(CorruptContent, match="another image's manifest"):
        store.read_manifest(manifest.digest)


def test_what_nobody_wants_goes_behind_the_grace(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend, tmp_path: Path
) -> None:
    kept = store.add(image)
    doomed = store.add(sealed(tmp_path / "doomed", tree(1)))
    now = max(one.modified_at for one in backend.list_objects("images"))
    assert store.collect({kept.digest}, DAY, now) == []
    assert store.collect({kept.digest}, DAY, now + DAY / 2) == []
    assert store.collect({kept.digest}, DAY, now + DAY + 60) == [doomed.digest]
    assert list(store.list_images()) == [kept]
    assert not list(backend.list_objects(f"images/{doomed.digest}"))


@pytest.mark.parametrize("again", ["wanted", "added"])
def test_what_is_wanted_again_stays(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend, again: str
) -> None:
    kept = store.add(image)
    now = max(one.modified_at for one in backend.list_objects("images"))
    store.collect(set(), DAY, now)
    if again == "wanted":
        store.collect({kept.digest}, DAY, now + 2 * DAY)
    else:
        store.add(image)
    assert store.collect(set(), DAY, now + 2 * DAY) == []
    assert list(store.list_images()) == [kept]


def test_parts_that_nobody_went_on_with_go_behind_the_grace(
    store: ImageStore, image: ImagePaths, manifest: Manifest, backend: Backend
) -> None:
    with pytest.raises(FillStopped):
        store.add(image, should_stop=lambda: bool(list(backend.list_objects(parts_folder(manifest.digest)))))
    now = max(one.modified_at for one in backend.list_objects("images"))
    assert store.collect(set(), DAY, now + DAY / 2) == []
    assert store.collect(set(), DAY, now + DAY) == [manifest.digest]
    assert not list(backend.list_objects("images"))
