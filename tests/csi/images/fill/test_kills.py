"""A fill that is killed at any point goes on where it was, and trusts only what was synced."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi.images.fill.fill import CHECKPOINT_CHUNKS, MAX_UNSYNCED_CHUNKS, fill, seal
from csi.images.layout.chunks import ChunkPlan
from csi.images.layout.layout import Layout, build_layout
from csi.images.node_store.journal import Journal
from csi.images.node_store.partial_image import PartialImage
from csi.manifest.manifest import Manifest, build_manifest
from tests.csi.images.origin import FakeOrigin, in_child, read_log
from tests.csi.images.trees import content, file, manifests, write_image

CHUNK = 4096
CONNECTIONS = 3
POINTS = ["write", "wrote", "sync", "synced", "append", "torn", "appended", "read"]


class Run:
    """One image and the kills it went through; every fill is a process of its own."""

    def __init__(self, folder: Path, manifest: Manifest, chunk: int = CHUNK) -> None:
        self.chunk = chunk
        self.layout: Layout = build_layout(manifest)
        self.folder, self.partial, self.journal = folder, folder / "image.partial", folder / "journal"
        self._logs = 0

    def fill(self, prepare: Callable[[], None] | None = None) -> tuple[int, list[tuple[int, int, str]]]:
        """How the process ended, and what it asked of the origin."""
        self._logs += 1
        log = self.folder / f"log{self._logs}"

        def work() -> None:
            if prepare is not None:
                prepare()
            fill(
                self.layout,
                self.partial,
                self.journal,
                FakeOrigin(log=log).open,
                max_connections=CONNECTIONS,
                chunk_bytes=self.chunk,
            )

        return in_child(work), read_log(log)

    def durable(self) -> int:
        with Journal(self.journal, self.layout, self.chunk) as log:
            return log.durable_bytes

    def spoil(self, begin: int) -> None:
        """What was never synced may be anything after a power cut."""
        if self.partial.exists():
            with self.partial.open("r+b") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(begin)
                stream.write(b"\xa5" * max(0, size - begin))

    def check_requests(self, asked: list[tuple[int, int, str]], durable: int) -> None:
        """Nothing that stands before `durable` is asked for."""
        place = {extent.entry.path: extent.offset for extent in self.layout.extents}
        assert all(place[path] + offset >= durable for offset, _, path in asked)

    def check_bytes(self) -> None:
        write_image(self.layout, self.folder / "expected")
        assert self.partial.read_bytes() == (self.folder / "expected").read_bytes()


def die_at(point: str, count: int) -> Callable[[], None]:
    """Make this process kill itself at the `count`-th time it is at `point`."""
    left, lock = [count], threading.Lock()

    def passing(here: str) -> None:
        with lock:
            if here == point:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: type, name: str, before: str, after: str) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: object) -> None:
            passing(before)
            real(*arguments)
            passing(after)

        setattr(owner, name, wrapped)

    def arm() -> None:
        around(PartialImage, "write", "write", "wrote")
        around(PartialImage, "sync", "sync", "synced")
        around(Journal, "append", "append", "appended")
        around(FakeOrigin, "give", "read", "answered")
        if point == "torn":
            real = os.write
            os.write = lambda fd, data: _torn(real, fd, data, left)  # type: ignore[assignment]

    return arm


def _torn(real: Callable[[int, bytes], int], fd: int, data: bytes, left: list[int]) -> int:
    if len(data) == 12:
        left[0] -= 1
        if left[0] == 0:
            real(fd, data[:7])
            os.kill(os.getpid(), signal.SIGKILL)
    return real(fd, data)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    manifest=manifests(st.integers(0, 150_000)),
    kills=st.lists(st.tuples(st.sampled_from(POINTS), st.integers(1, 12)), min_size=1, max_size=4),
)
def test_a_killed_fill_goes_on_and_fetches_nothing_durable_again(
    manifest: Manifest, kills: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, durable, fetched, died = Run(Path(folder), manifest), 0, 0, 0
        for kill in kills:
            ended, asked = run.fill(die_at(*kill))
            assert ended in (0, -signal.SIGKILL)
            died += ended != 0
            fetched += sum(length for _, length, _ in asked)
            run.check_requests(asked, durable)
            assert run.durable() >= durable
            durable = run.durable()
            run.spoil(durable)
        ended, asked = run.fill()
        assert ended == 0
        run.check_requests(asked, durable)
        run.check_bytes()
        again = fetched + sum(length for _, length, _ in asked) - manifest.content_bytes
        assert again <= died * (CONNECTIONS + MAX_UNSYNCED_CHUNKS) * CHUNK


@pytest.mark.parametrize("point", POINTS)
def test_every_kind_of_kill_happens(tmp_path: Path, point: str) -> None:
    run = Run(tmp_path, build_manifest([file(f"f{n}", 30_000) for n in range(20)], {}))
    ended, _ = run.fill(die_at(point, 2))
    assert ended == -signal.SIGKILL
    assert run.fill()[0] == 0
    run.check_bytes()


def test_the_file_that_a_kill_cut_is_hashed_from_disk_and_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, build_manifest([file("big", 500_000)], {}))
    assert run.fill(die_at("appended", 3))[0] == -signal.SIGKILL
    durable = run.durable()
    assert durable > 2 * CHECKPOINT_CHUNKS * CHUNK
    ended, asked = run.fill()
    assert ended == 0
    assert sum(length for _, length, _ in asked) == 500_000 - (durable - len(run.layout.metadata))
    run.check_bytes()


def test_a_long_cut_file_behind_others_is_hashed_from_disk_in_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, build_manifest([file("a", 5_000), file("big", 21_000_001)], {}), chunk=1 << 20)
    assert run.fill(die_at("appended", 4))[0] == -signal.SIGKILL
    durable = run.durable()
    assert durable > 9_000_000
    ended, asked = run.fill()
    assert ended == 0
    run.check_requests(asked, durable)
    run.check_bytes()


def test_durable_bytes_of_a_cut_file_that_rotted_are_found_by_its_digest(tmp_path: Path) -> None:
    run = Run(tmp_path, build_manifest([file("big", 500_000)], {}))
    assert run.fill(die_at("appended", 3))[0] == -signal.SIGKILL
    with run.partial.open("r+b") as stream:
        stream.seek(len(run.layout.metadata) + 100)
        stream.write(bytes(10))
    assert run.fill()[0] == 0
    run.check_bytes()


def test_the_journal_speaks_only_of_what_was_written_before_a_sync_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, build_manifest([file(f"f{n}", 30_000) for n in range(30)], {}))
    written: dict[int, int] = {}
    synced: dict[int, int] = {}
    claims: list[int] = []
    write, sync, append = PartialImage.write, PartialImage.sync, Journal.append

    def watched_write(image: PartialImage, offset: int, data: memoryview) -> None:
        write(image, offset, data)
        written[offset] = offset + len(data)

    def watched_sync(image: PartialImage) -> None:
        before = dict(written)
        sync(image)
        synced.update(before)

    def watched_append(journal: Journal, durable: int) -> None:
        at = 0
        while at < durable:
            at = synced[at]
        claims.append(durable)
        append(journal, durable)

    for owner, name, watched in (
        (PartialImage, "write", watched_write),
        (PartialImage, "sync", watched_sync),
        (Journal, "append", watched_append),
    ):
        monkeypatch.setattr(owner, name, watched)
    fill(
        run.layout,
        run.partial,
        run.journal,
        FakeOrigin(lambda *_: Event().wait(0.001) and None).open,
        max_connections=CONNECTIONS,
        chunk_bytes=CHUNK,
    )
    assert len(claims) > 5
    assert claims[-1] == run.layout.size


def test_a_slow_sync_holds_the_readers_back_so_that_a_kill_stays_cheap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, build_manifest([file("big", 400 * CHUNK)], {}))
    origin, durable, most = FakeOrigin(), [0], [0]
    sync, append = PartialImage.sync, Journal.append

    def slow_sync(image: PartialImage) -> None:
        Event().wait(0.05)
        most[0] = max(most[0], origin.bytes - durable[0])
        sync(image)

    def watched_append(journal: Journal, at: int) -> None:
        durable[0] = at - len(run.layout.metadata)
        append(journal, at)

    monkeypatch.setattr(PartialImage, "sync", slow_sync)
    monkeypatch.setattr(Journal, "append", watched_append)
    fill(run.layout, run.partial, run.journal, origin.open, max_connections=CONNECTIONS, chunk_bytes=CHUNK)
    assert 0 < most[0] <= (CONNECTIONS + MAX_UNSYNCED_CHUNKS) * CHUNK


def _journal(tmp_path: Path, layout: Layout, durable: list[int]) -> Path:
    path = tmp_path / "journal"
    with Journal(path, layout, CHUNK) as log:
        for at in durable:
            log.append(at)
    return path


@pytest.fixture
def layout() -> Layout:
    return build_layout(build_manifest([file("a", 100_000)], {}))


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_journal_record_is_ignored(tmp_path: Path, layout: Layout, cut: int) -> None:
    path = _journal(tmp_path, layout, [4096, 8192])
    os.truncate(path, path.stat().st_size - cut)
    with Journal(path, layout, CHUNK) as log:
        assert log.durable_bytes == 4096
        log.append(12288)
    with Journal(path, layout, CHUNK) as log:
        assert log.durable_bytes == 12288


@pytest.mark.parametrize("back", range(1, 13))
def test_a_damaged_journal_record_and_what_follows_it_are_ignored(
    tmp_path: Path, layout: Layout, back: int
) -> None:
    path = _journal(tmp_path, layout, [4096, 8192, 12288])
    data = bytearray(path.read_bytes())
    data[-12 - back] ^= 0x40
    path.write_bytes(data)
    with Journal(path, layout, CHUNK) as log:
        assert log.durable_bytes == 4096


def test_a_journal_of_another_image_chunk_size_or_nonsense_says_nothing(
    tmp_path: Path, layout: Layout
) -> None:
    path = _journal(tmp_path, layout, [8192])
    with Journal(path, layout, 2 * CHUNK) as log:
        assert log.durable_bytes == 0
    for data in (b"", b"nonsense", bytes(4096)):
        path.write_bytes(data)
        with Journal(path, layout, CHUNK) as log:
            assert log.durable_bytes == 0


def test_a_seal_that_was_killed_half_way_is_finished(tmp_path: Path) -> None:
    run = Run(tmp_path, build_manifest([file("a", 10_000)], {}))
    final = tmp_path / "image"
    for patched in ("fsync_file", "rename_and_sync", "fsync_folder"):
        assert run.fill()[0] == 0 or final.exists()

        def work(name: str = patched) -> None:
            import csi.images.fill.fill as module

            real = getattr(module, name)
            setattr(module, name, lambda *a: (real(*a), os.kill(os.getpid(), signal.SIGKILL)))
            seal(run.partial, final, run.journal)

        assert in_child(work) == -signal.SIGKILL
        seal(run.partial, final, run.journal)
        assert not run.partial.exists()
        assert not run.journal.exists()
        assert content("a", 10_000) in final.read_bytes()
        final.unlink()


def test_a_plan_of_chunks_covers_every_byte_of_every_file_once() -> None:
    layout = build_layout(build_manifest([file(f"f{n:02d}", n * 1500) for n in range(20)], {}))
    for size in (4096, 8192, 1 << 22):
        plan = ChunkPlan(layout, size)
        pieces = [piece for index in range(plan.count) for piece in plan.build_chunk(index).pieces]
        seen: dict[str, int] = {}
        for piece in pieces:
            assert seen.get(piece.entry.path, 0) == piece.offset
            assert piece.length > 0
            seen[piece.entry.path] = piece.offset + piece.length
        assert seen == {e.entry.path: e.entry.size for e in layout.extents}
        assert plan.get_offset(plan.count) == layout.size
        assert plan.content_bytes_before(layout.size) == layout.manifest.content_bytes
        for index in range(plan.count + 1):
            assert plan.index_at(plan.get_offset(index)) == index
