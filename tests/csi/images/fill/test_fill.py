"""The fill against an origin that fails in every way an origin can, and file systems that are small or
unusual."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi.errors import (
    CorruptContent,
    DataCacheError,
    FillStopped,
    NoSpace,
    OriginThrottled,
    OriginUnavailable,
    OriginUntrusted,
    PermissionDenied,
)
from csi.images.fill import retrying_reader
from csi.images.fill.fill import fill, seal
from csi.images.layout.chunks import CHUNK_BYTES
from csi.images.layout.layout import build_layout
from csi.images.node_store.partial_image import PartialImage
from csi.images.progress import FillProgress
from csi.manifest.manifest import Entry, EntryKind, Manifest, build_manifest
from csi.manifest.reader import Reader
from tests.csi.images.origin import FakeOrigin
from tests.csi.images.trees import compare, content, digest_of, file, fsck, manifests, mounted, write_image

SMALL = 8192
MIXED = [
    file("a", 5),
    file("big", 300_000),
    file("c", 4096, "git"),
    file("d/e", 20_000, "token"),
    file("z", 0),
]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_reader, "MIN_RETRY_PAUSE", 0.001)
    monkeypatch.setattr(retrying_reader, "MAX_RETRY_PAUSE", 0.01)


class Place:
    """Where a test's image grows."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.layout = build_layout(manifest)
        self.folder, self.partial, self.journal, self.image = (
            folder,
            folder / "image.partial",
            folder / "journal",
            folder / "image",
        )

    def fill(self, origin: FakeOrigin, **more: object) -> None:
        fill(self.layout, self.partial, self.journal, origin.open, **{"chunk_bytes": SMALL, **more})  # type: ignore[arg-type]

    def expected(self) -> bytes:
        write_image(self.layout, self.folder / "expected")
        return (self.folder / "expected").read_bytes()

    def check(self) -> None:
        assert self.partial.read_bytes() == self.expected()

    def durable(self) -> int:
        from csi.images.node_store.journal import Journal

        with Journal(self.journal, self.layout, SMALL) as log:
            return log.durable_bytes


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, build_manifest(MIXED, {}))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    manifest=manifests(),
    connections=st.integers(1, 5),
    chunk=st.sampled_from([4096, 8192, 65536, CHUNK_BYTES]),
)
def test_any_tree_is_filled_to_exactly_the_layouts_bytes(
    manifest: Manifest, connections: int, chunk: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place, origin = Place(Path(folder), manifest), FakeOrigin()
        place.fill(origin, max_connections=connections, chunk_bytes=chunk)
        place.check()
        assert origin.bytes == manifest.content_bytes
        assert origin.opened == origin.closed <= connections


def test_a_filled_and_sealed_image_is_mounted_and_right(place: Place) -> None:
    place.fill(FakeOrigin())
    seal(place.partial, place.image, place.journal)
    assert place.image.stat().st_mode & 0o777 == 0o400
    assert not place.partial.exists()
    assert not place.journal.exists()
    fsck(place.image)
    with mounted(place.image, place.folder / "mnt") as root:
        compare(place.layout.manifest, root)


def test_sealing_twice_is_sealing_once_and_nothing_to_seal_is_said(place: Place) -> None:
    with pytest.raises(DataCacheError, match="no partial image"):
        seal(place.partial, place.image, place.journal)
    place.fill(FakeOrigin())
    seal(place.partial, place.image, place.journal)
    seal(place.partial, place.image, place.journal)


def test_a_finished_fill_that_was_not_sealed_asks_the_origin_nothing(place: Place) -> None:
    place.fill(FakeOrigin())
    again = FakeOrigin()
    place.fill(again)
    assert again.bytes == 0
    assert again.opened == 0
    place.check()


def test_passing_failures_are_asked_again_over_a_fresh_connection(place: Place) -> None:
    failing = iter(range(10**9))

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if next(failing) % 3 == 0:
            buffer[:] = bytes(len(buffer))
            raise OriginUnavailable("gone for a moment")

    origin = FakeOrigin(fault)
    place.fill(origin, max_connections=2)
    place.check()
    assert origin.opened == origin.closed > 10


def test_an_origin_that_stays_away_ends_the_fill_after_bounded_tries(place: Place) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        raise OriginUnavailable("nobody there")

    origin = FakeOrigin(fault)
    with pytest.raises(OriginUnavailable, match="nobody there"):
        place.fill(origin, max_connections=1)
    assert sum(origin.asked.values()) == retrying_reader.MAX_ATTEMPTS
    place.fill(FakeOrigin())
    place.check()


def test_a_certificate_that_is_not_trusted_is_not_asked_again(place: Place) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        raise OriginUntrusted("no CA of ours")

    origin = FakeOrigin(fault)
    with pytest.raises(OriginUntrusted):
        place.fill(origin, max_connections=1)
    assert sum(origin.asked.values()) == 1


def test_failing_to_connect_is_a_passing_failure_too(place: Place) -> None:
    origin, left = FakeOrigin(), [3]

    def open_reader() -> object:
        if left[0]:
            left[0] -= 1
            raise OriginUnavailable("no route")
        return origin.open()

    fill(place.layout, place.partial, place.journal, open_reader, chunk_bytes=SMALL)  # type: ignore[arg-type]
    place.check()


def test_a_connection_that_fails_to_close_does_no_harm(place: Place) -> None:
    @contextmanager
    def open_reader() -> Iterator[Reader]:
        with origin.open() as reader:
            yield reader
        raise OriginUnavailable("goodbye lost")

    origin = FakeOrigin()
    fill(place.layout, place.partial, place.journal, open_reader, chunk_bytes=SMALL)
    place.check()


@pytest.mark.parametrize("error", [PermissionDenied("not yours"), RuntimeError("a fault of the reader")])
def test_other_errors_end_the_fill_as_they_are(place: Place, error: Exception) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == "c":
            raise error

    origin = FakeOrigin(fault)
    with pytest.raises(type(error), match=str(error)):
        place.fill(origin)
    assert origin.asked["c"] == 1
    assert origin.opened == origin.closed


@pytest.mark.parametrize("path", ["a", "big", "c"])
def test_bytes_that_are_wrong_once_are_fetched_once_more(place: Place, path: str) -> None:
    wrong = {path}

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path in wrong:
            wrong.clear()
            buffer[0] ^= 1

    origin = FakeOrigin(fault)
    place.fill(origin)
    place.check()
    size = next(e.size for e in MIXED if e.path == path)
    assert origin.bytes == place.layout.manifest.content_bytes + size


def test_wrong_bytes_that_are_still_being_written_do_not_end_over_the_right_ones(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, write = {"big"}, PartialImage.write

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path in wrong and offset + len(buffer) == entry.size:
            wrong.clear()
            buffer[0] ^= 1

    def slow_write(image: PartialImage, offset: int, data: memoryview) -> None:
        if not wrong and len(data) <= SMALL:
            threading.Event().wait(0.1)
        write(image, offset, data)

    monkeypatch.setattr(PartialImage, "write", slow_write)
    place.fill(FakeOrigin(fault), max_connections=2)
    place.check()


@pytest.mark.parametrize("path", ["a", "big", "c"])
def test_bytes_that_are_wrong_always_name_the_file_and_both_digests(place: Place, path: str) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == path and offset == 0:
            buffer[0] ^= 1

    entry = next(e for e in MIXED if e.path == path)
    data = content(path, entry.size)
    found = digest_of(bytes([data[0] ^ 1]) + data[1:], entry.digest.split(":")[0])
    with pytest.raises(CorruptContent) as caught:
        place.fill(FakeOrigin(fault))
    extent = next(extent for extent in place.layout.extents if extent.entry.path == path)
    assert place.durable() < extent.offset + entry.size, "the journal never says that a wrong file is done"
    assert all(text in str(caught.value) for text in (repr(path), entry.digest, found))


def test_after_corrupt_content_an_origin_that_healed_finishes_the_fill(place: Place) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == "big" and offset + len(buffer) > 200_000:
            buffer[-1] ^= 1

    with pytest.raises(CorruptContent):
        place.fill(FakeOrigin(fault))
    place.fill(FakeOrigin())
    place.check()


def test_an_unverifiable_file_is_taken_as_it_comes(place: Place) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == "d/e":
            buffer[:] = bytes(len(buffer))

    origin = FakeOrigin(fault)
    place.fill(origin)
    assert origin.bytes == place.layout.manifest.content_bytes


def test_an_empty_file_with_the_digest_of_something_is_corrupt(tmp_path: Path) -> None:
    entry = replace(file("x", 5), size=0)
    with pytest.raises(CorruptContent, match="'x'"):
        Place(tmp_path, build_manifest([entry], {})).fill(FakeOrigin())


def test_a_stop_keeps_what_is_done_and_the_next_fill_goes_on(place: Place) -> None:
    stop = threading.Event()
    done: list[int] = []

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == "big" and offset > 150_000:
            stop.set()

    def tell(progress: FillProgress) -> None:
        done.append(progress.bytes_done)

    hold = FakeOrigin(lambda *a: (fault(*a), stop.is_set() and threading.Event().wait(0.05))[0])
    with pytest.raises(FillStopped):
        place.fill(hold, max_connections=1, should_stop=stop.is_set)
    durable = place.durable()
    assert durable > 100_000
    origin = FakeOrigin()
    place.fill(origin, on_progress=tell)
    place.check()
    assert origin.asked["a"] == 0
    assert origin.bytes < place.layout.manifest.content_bytes - 100_000
    assert done[0] > 100_000
    assert done[-1] == place.layout.manifest.content_bytes


def test_a_stop_does_not_wait_for_the_origins_patience_to_end(place: Place) -> None:
    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        raise OriginThrottled("come back tomorrow", 86_400)

    with pytest.raises(FillStopped):
        place.fill(FakeOrigin(fault), should_stop=lambda: True)


def test_one_stalled_connection_does_not_stop_the_others_from_reading_ahead(place: Place) -> None:
    go_on = threading.Event()

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if entry.path == "a":
            assert go_on.wait(30)
        elif offset >= 5 * SMALL:
            go_on.set()

    place.fill(FakeOrigin(fault), max_connections=3)
    place.check()


def test_progress_counts_the_bytes_of_files_and_ends_at_all_of_them(place: Place) -> None:
    seen: list[FillProgress] = []
    place.fill(
        FakeOrigin(lambda *_: threading.Event().wait(0.02) and None),
        max_connections=1,
        on_progress=seen.append,
    )
    total = place.layout.manifest.content_bytes
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    assert {p.bytes_total for p in seen} == {total}
    assert (seen[-1].bytes_done, seen[-1].bytes_fetched, seen[-1].seconds_left) == (total, total, 0.0)
    assert any(p.rate > 0 and p.seconds_left for p in seen[1:-1])


def test_a_journal_of_another_image_starts_from_zero(place: Place, tmp_path: Path) -> None:
    place.fill(FakeOrigin())
    other = Place(
        tmp_path, build_manifest([replace(e, digest="token:other") if e.size else e for e in MIXED], {})
    )
    assert other.layout.size == place.layout.size
    origin = FakeOrigin()
    other.fill(origin)
    assert origin.bytes == other.layout.manifest.content_bytes
    other.check()


def test_a_partial_image_that_is_missing_or_cut_starts_from_zero(place: Place) -> None:
    place.fill(FakeOrigin())
    os.truncate(place.partial, place.layout.size - 4096)
    place.fill(cut := FakeOrigin())
    place.check()
    place.partial.unlink()
    place.fill(missing := FakeOrigin())
    place.check()
    assert cut.bytes == missing.bytes == place.layout.manifest.content_bytes


def test_an_image_is_allocated_before_a_byte_is_asked_for(place: Place) -> None:
    allocated: list[int] = []
    place.fill(FakeOrigin(lambda *_: allocated.append(place.partial.stat().st_blocks * 512)))
    assert allocated[0] >= place.layout.size


def test_the_page_cache_is_left_to_the_pods(tmp_path: Path) -> None:
    place = Place(tmp_path, build_manifest([file("big", 20_000_000)], {}))
    place.fill(FakeOrigin(), chunk_bytes=CHUNK_BYTES)
    cached = subprocess.run(
        ["fincore", "-nb", "-o", "RES", str(place.partial)], capture_output=True, text=True, check=True
    )
    assert int(cached.stdout) < 1_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    at = tmp_path / "disk"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(at)], check=True)
    yield at
    subprocess.run(["umount", str(at)], check=True)


def test_a_full_disk_is_no_space_with_both_numbers_and_nothing_is_kept(small_disk: Path) -> None:
    place = Place(small_disk, build_manifest([file("big", 3_000_000)], {}))
    with pytest.raises(NoSpace, match=r"needs 2\.9 MiB.* has 10\d\d\.0 KiB left"):
        place.fill(FakeOrigin())
    assert not place.partial.exists()


def test_a_file_system_of_memory_is_filled_too(small_disk: Path) -> None:
    place = Place(small_disk, build_manifest(MIXED, {}))
    place.fill(FakeOrigin())
    write_image(place.layout, small_disk.parent / "expected")
    assert place.partial.read_bytes() == (small_disk.parent / "expected").read_bytes()


def test_a_file_system_without_direct_writes_or_allocation_is_written_through_the_cache(
    tmp_path: Path,
) -> None:
    at = tmp_path / "ram"
    at.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(at)], check=True)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(at / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        place = Place(at, build_manifest(MIXED, {}))
        place.fill(FakeOrigin())
        place.check()
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_a_hundred_files_of_every_size_around_a_chunk(tmp_path: Path) -> None:
    sizes = [n * SMALL + d for n in range(5) for d in (-1, 0, 1, 4095, 4096, 4097) if n * SMALL + d >= 0]
    place = Place(
        tmp_path,
        build_manifest(
            [file(f"f{i:02d}", size, "git" if i % 2 else "sha256") for i, size in enumerate(sizes)], {}
        ),
    )
    place.fill(FakeOrigin())
    place.check()


def test_an_empty_volume_is_filled_and_sealed(tmp_path: Path) -> None:
    place, origin = Place(tmp_path, build_manifest([Entry("d", EntryKind.DIRECTORY)], {})), FakeOrigin()
    place.fill(origin)
    place.fill(origin)
    seal(place.partial, place.image, place.journal)
    fsck(place.image)
    assert origin.opened == 0
