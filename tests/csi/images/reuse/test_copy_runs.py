"""Files that another image of the source has are not fetched again, on any file system, whatever kills the
fill in between."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi.errors import CorruptContent, FillStopped
from csi.images.node_store.journal import Journal
from csi.images.node_store.partial_image import PartialImage
from csi.images.progress import FillProgress
from csi.images.reuse import prepare
from csi.images.reuse.copy_runs import RunCopier
from csi.images.reuse.extents import find_copy_runs
from csi.manifest.manifest import build_manifest
from tests.csi.images.origin import in_child, read_log
from tests.csi.images.revisions import MIB, Contents, Image, cached, first, on, sealed, second, used

SHARING, COPYING = ("xfs", "btrfs"), ("ext4",)
Folder = Callable[[str], Path]


@pytest.fixture(params=[*SHARING, *COPYING])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path) -> Iterator[Folder]:
    with on(kind, tmp_path) as folder:
        yield folder


def changed(old: Contents, new: Contents) -> int:
    """Bytes of files of `new` that `old` has nowhere."""
    return sum(len(data) for data in new.values() if data not in old.values())


def test_a_revision_that_shares_most_bytes_fetches_the_rest_and_takes_no_room_twice(
    kind: str, place: Folder
) -> None:
    old = first()
    a, new = sealed(place("a"), old), second(old)
    before = used(place("a"))
    seen: list[FillProgress] = []
    b = Image(place("b"), new)
    b.fill([a], on_progress=seen.append)
    b.seal()

    total, rest = b.manifest.content_bytes, changed(old, new)
    assert b.origin.bytes == rest
    assert 0.03 < rest / total < 0.06
    assert set(b.origin.asked) == {"shards/3.bin", "new/config.json"}
    last = seen[-1]
    assert (last.bytes_done, last.bytes_fetched, last.bytes_copied) == (total, rest, total - rest)
    assert f"({(total - rest) / MIB:.0f} MiB from other images)" in last.format()
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)
    taken, own = (
        used(place("a")) - before,
        b.layout.size if kind in COPYING else len(b.layout.metadata) + rest,
    )
    assert own <= taken + MIB, (taken, own)
    assert taken <= own + 4 * MIB, (taken, own)
    a.check()
    b.check()
    a.paths.image.unlink()
    b.check()


@pytest.mark.parametrize("kind", SHARING, indirect=True)
def test_where_extents_are_shared_a_fill_needs_room_for_the_rest_alone(place: Folder) -> None:
    old = first()
    a, b = sealed(place("a"), old), Image(place("b"), second(old))
    used(place("a"))
    status = os.statvfs(place("a").parent)
    with place("ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, status.f_bavail * status.f_frsize - b.layout.size // 2)
    b.fill([a])
    b.check()


def test_all_of_an_image_may_come_from_several_others(place: Folder) -> None:
    old = first()
    halves: list[dict[str, bytes]] = [{}, {}]
    for number, (path, data) in enumerate(old.items()):
        halves[number % 2]["other/" + path] = data
    donors = [sealed(place(f"half{n}"), half) for n, half in enumerate(halves)]
    whole = Image(place("whole"), old)
    whole.fill(donors)
    assert whole.origin.bytes == whole.origin.opened == 0
    whole.check()
    again = Image(place("whole"), old)
    again.fill()
    assert again.origin.opened == 0, "the journal says that all of it is there"


def test_a_file_that_is_wanted_twice_is_copied_twice(place: Folder) -> None:
    data = os.urandom(3 * MIB)
    a, b = sealed(place("a"), {"x": data}), Image(place("b"), {"p/x": data, "q": b"own", "r/x": data})
    b.fill([a])
    assert b.origin.asked.keys() == {"q"}
    b.check()


def test_donors_that_are_gone_damaged_or_laid_out_otherwise_only_cost_a_fetch(tmp_path: Path) -> None:
    old = first(MIB // 16)
    donors = [sealed(tmp_path / name, old) for name in ("gone", "damaged", "cut", "other")]
    donors[0].paths.image.unlink()
    donors[1].paths.manifest.write_bytes(b"{")
    os.truncate(donors[2].paths.image, donors[2].layout.size - 4096)
    donors[3].paths.image.write_bytes(bytes(donors[3].layout.size))
    b = Image(tmp_path / "b", old)
    b.fill([*donors, Image(tmp_path / "never", {})])
    b.check()
    assert b.origin.bytes == b.manifest.content_bytes


def test_a_donor_that_fails_under_way_costs_a_fetch_of_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = first(MIB // 16)
    a, b = sealed(tmp_path / "a", old), Image(tmp_path / "b", old)
    cut = a.layout.extents[-100]

    def runs_of_a_cut_image(*arguments: object) -> object:
        found = find_copy_runs(*arguments)  # type: ignore[arg-type]
        os.truncate(a.paths.image, cut.offset)
        return found

    monkeypatch.setattr(prepare, "find_copy_runs", runs_of_a_cut_image)
    b.fill([a])
    b.check()


def test_only_digests_that_an_origin_gave_are_believed(tmp_path: Path) -> None:
    """What a user claims is verified when it is fetched; it opens no image of anybody."""
    a = sealed(tmp_path / "a", {"x": b"private" * 1000}, "sha256")
    entry = replace(
        next(a.manifest.files), digest=next(a.manifest.files).digest.replace("sha256:", "claimed:")
    )
    b = Image(tmp_path / "b", a.contents)
    b.layout = replace(
        b.layout,
        manifest=build_manifest([entry], {}),
        extents=tuple(replace(e, entry=entry) for e in b.layout.extents),
    )
    assert find_copy_runs(b.layout, [a.paths]) == []


def test_equal_digests_of_another_size_are_not_the_same_file(tmp_path: Path) -> None:
    a = sealed(tmp_path / "a", {"x": b"1234567890"}, "sha256")
    entry = replace(next(a.manifest.files), size=9)
    b = Image(tmp_path / "b", {"x": b"123456789"}, "sha256")
    b.layout = replace(b.layout, extents=tuple(replace(e, entry=entry) for e in b.layout.extents))
    assert find_copy_runs(b.layout, [a.paths]) == []


def test_what_is_fetched_beside_copied_files_is_still_verified(tmp_path: Path) -> None:
    old = first(MIB // 16)
    a, b = sealed(tmp_path / "a", old), Image(tmp_path / "b", second(old))

    def fault(entry: object, offset: int, buffer: memoryview) -> None:
        buffer[0] ^= 1

    b.origin.fault = fault
    with pytest.raises(CorruptContent):
        b.fill([a])
    b.origin.fault = None
    b.fill()
    b.check()
    a.check()


def test_the_page_cache_of_both_images_is_left_to_the_pods(tmp_path: Path) -> None:
    with on("ext4", tmp_path) as folder:
        a = sealed(folder("a"), first())
        b = Image(folder("b"), first())
        b.fill([a])
        assert cached(a.paths.image) < MIB + len(a.layout.metadata)
        assert cached(b.paths.partial) < MIB


def test_a_stop_is_heard_between_the_steps_of_one_large_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csi.images.reuse import copy_runs

    monkeypatch.setattr(copy_runs, "_MAX_COPY_BYTES", MIB)
    with on("ext4", tmp_path) as folder:
        a = sealed(folder("a"), {"x": os.urandom(20 * MIB)})
        b = Image(folder("b"), a.contents)
        stop, seen = threading.Event(), list[FillProgress]()

        def tell(progress: FillProgress) -> None:
            seen.append(progress)
            stop.set()

        with pytest.raises(FillStopped):
            b.fill([a], on_progress=tell, should_stop=stop.is_set)
        assert 0 < seen[-1].bytes_copied < 20 * MIB
        b.fill([a])
        assert b.origin.bytes == 0
        b.check()


def die_at(owner: type, name: str, count: int) -> Callable[[], None]:
    """Make this process kill itself right before the `count`-th call, or right after it where `count` is
    negative."""
    real, left = getattr(owner, name), [abs(count)]

    def wrapped(*arguments: object) -> object:
        left[0] -= 1
        if left[0] == 0 and count > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return lambda: setattr(owner, name, wrapped)


def spoil(image: Image) -> None:
    """What the journal does not say is on disk may be anything after a power cut."""
    with Journal(image.paths.journal, image.layout, MIB) as log:
        durable, copied = log.durable_bytes, log.copied_offsets
    if not image.paths.partial.exists():
        return
    with image.paths.partial.open("r+b") as stream:
        if not copied and not durable:
            stream.write(b"\xa5" * image.layout.size)
        for extent in image.layout.extents:
            if extent.offset >= durable and extent.offset not in copied:
                stream.seek(extent.offset)
                stream.write(b"\xa5" * extent.entry.size)


KILLS = [
    (PartialImage, "create", 1),
    (PartialImage, "create", -1),
    (RunCopier, "_copy_step", 1),
    (RunCopier, "_copy_step", 3),
    (RunCopier, "sync", 1),
    (RunCopier, "sync", -1),
    (RunCopier, "sync", 3),
    (Journal, "append_copied", 1),
    (Journal, "append_copied", -2),
    (PartialImage, "write", 2),
    (Journal, "append", 1),
    (Journal, "append", -1),
]


@pytest.mark.parametrize("kind", ["xfs", "ext4"], indirect=True)
def test_a_fill_killed_at_any_point_of_its_copying_ends_with_the_right_bytes(
    place: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without its donor at hand the next time, and trusting nothing that was not synced."""
    monkeypatch.setattr(prepare, "_MAX_UNSYNCED_BYTES", MIB // 4)
    monkeypatch.setattr("csi.images.reuse.extents.TARGET_RUN_BYTES", MIB // 8)
    old = first(MIB // 8)
    a, new = sealed(place("a"), old), second(old)
    for number, (owner, name, count) in enumerate(KILLS):
        log = place(f"log{number}")
        b, arm = Image(place(f"b{number}"), new, log=log), die_at(owner, name, count)
        assert in_child(lambda b=b, arm=arm: (arm(), b.fill([a]))) == -signal.SIGKILL, (name, count)
        spoil(b)
        b.fill([a] if number % 2 else [])
        b.check()
        fetched = sum(length for _, length, _ in read_log(log))
        assert not number % 2 or fetched <= changed(old, new) * 2, "what the other image has is never fetched"
        a.check()
