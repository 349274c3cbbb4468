"""The store: what is there after kills, who goes when room is needed, and what is said when there is none."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.errors import DataCacheError, FailedPrecondition, NoSpace
from csi.images.fill.fill import fill, seal
from csi.images.layout.layout import build_layout
from csi.images.node_store.eviction import ImageUsage, select_victims
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store
from csi.linux import durable_files
from csi.manifest.manifest import build_manifest
from tests.csi.images.origin import FakeOrigin, in_child
from tests.csi.images.stores import MIB, adopt, as_format_1, manifest_of, names, put
from tests.csi.images.trees import file


def test_an_image_goes_from_manifest_to_partial_to_sealed(store: Store) -> None:
    manifest = manifest_of("a")
    digest = adopt(store, manifest)
    layout, record = build_layout(manifest), store.find_partial(digest)
    assert record is not None
    assert record.size == layout.size
    assert store.find_sealed(digest) is None
    assert store.read_manifest(digest) == manifest
    with store.reserve(digest) as reserved:
        fill(layout, reserved.paths.partial, reserved.paths.journal, FakeOrigin().open)
        seal(reserved.paths.partial, reserved.paths.image, reserved.paths.journal)
    sealed = store.find_sealed(digest)
    assert sealed is not None
    assert sealed.size == layout.size
    assert store.find_partial(digest) is None
    assert {path.name for path in sealed.paths.folder.iterdir()} == {"manifest", "image", "facts.json"}


def test_everything_in_the_store_is_its_owners_alone(store: Store, tmp_path: Path) -> None:
    adopt(store, manifest_of("a"))
    store.load_key()
    root = tmp_path / "store"
    folders = [root, root / "images", root / "tmp", *(root / "images").iterdir()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in folders)
    assert stat.S_IMODE((root / "key").stat().st_mode) == 0o600


def test_the_key_is_made_once_and_a_damaged_one_is_refused(store: Store, tmp_path: Path) -> None:
    key = store.load_key()
    assert len(key) == 32
    assert key == store.load_key()
    (tmp_path / "store/key").write_bytes(b"short")
    with pytest.raises(DataCacheError, match="damaged"):
        store.load_key()


def test_a_second_owner_is_refused_until_the_first_is_gone(store: Store, tmp_path: Path) -> None:
    script = f"from csi.images.node_store.store import Store; from pathlib import Path; Store(Path({str(tmp_path / 'store')!r}))"  # noqa: E501
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "FailedPrecondition" in other.stderr
    assert "another running process" in other.stderr
    with pytest.raises(FailedPrecondition):
        Store(tmp_path / "store")
    store.close()
    with Store(tmp_path / "store"):
        pass
    store.close()


def test_a_store_of_a_newer_format_is_left_alone(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "other"
    Store(root).close()
    durable_files.write_json(root / "format", {"format": 99})
    with pytest.raises(DataCacheError, match="format 99"):
        Store(root)


def test_the_default_budget_is_a_share_of_the_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    with Store(tmp_path / "s") as store:
        assert store.budget_bytes == int(status.f_blocks * status.f_frsize * 0.85)


def test_adopting_again_keeps_what_is_there(store: Store) -> None:
    digest = put(store, "a", MIB, 0)
    again = store.new_temp_path()
    again.write_bytes(b"other")
    record = store.adopt_manifest(digest, again, 5 * MIB)
    assert record.state is ImageState.SEALED
    assert record.size == MIB
    assert record.paths.manifest.read_bytes() == b"manifest"
    assert not again.exists()


@pytest.mark.parametrize("name", ["", "../../etc", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "/x"])
def test_what_is_no_digest_never_becomes_a_path(store: Store, name: str) -> None:
    with pytest.raises(DataCacheError, match="not the digest"):
        store.remove(name)


def test_a_sweep_removes_leftovers_and_keeps_images(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "store"
    sealed, partial = put(store, "s", MIB, 0), put(store, "p", MIB, 0, ImageState.PARTIAL)
    gone = put(store, "gone", MIB, 0, ImageState.PARTIAL)
    store.get_paths(gone).manifest.unlink()
    damaged = put(store, "damaged", MIB, 0, ImageState.PARTIAL)
    store.get_paths(damaged).facts.write_bytes(b"{")
    store.get_paths(sealed).journal.write_bytes(b"x")
    (store.get_paths(sealed).folder / ".facts.json.1.tmp").write_bytes(b"x")
    (root / ".key.1.tmp").write_bytes(b"x")
    (root / "tmp" / "folder").mkdir()
    store.new_temp_path().write_bytes(b"x")
    store.sweep()
    assert names(store) == {sealed, partial}
    assert {path.name for path in (root / "images").iterdir()} == {sealed, partial}
    assert list((root / "tmp").iterdir()) == []
    assert not (root / ".key.1.tmp").exists()
    assert {path.name for path in store.get_paths(sealed).folder.iterdir()} == {
        "manifest",
        "image",
        "facts.json",
        "used",
    }


@pytest.mark.parametrize("files", [1, 100])
def test_a_sweep_keeps_images_of_layout_format_1_unless_their_root_is_not_found(
    store: Store, files: int
) -> None:
    manifest = build_manifest([file(f"model-{n:05}-of-00150.st", 1) for n in range(files)], {})
    digest = adopt(store, manifest)
    with store.reserve(digest) as record:
        fill(build_layout(manifest), record.paths.partial, record.paths.journal, FakeOrigin().open)
        seal(record.paths.partial, record.paths.image, record.paths.journal)
    store.sweep()
    assert store.find_sealed(digest)
    as_format_1(record.paths.image)
    store.sweep()
    assert names(store) == ({digest} if files == 1 else set())


def _kill_at(count: int) -> None:
    """This process dies at the `count`-th change that it makes to the disk: open for writing, rename,
    removal, folder."""
    left = [count]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
        if changes or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_CREAT | os.O_WRONLY)
        ):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _one_life(root: Path) -> None:
    with Store(root, 2 * MIB) as store:
        store.sweep()
        store.load_key()
        for name in ("one", "two"):
            manifest = manifest_of(name, MIB + 5)
            digest = adopt(store, manifest)
            with store.reserve(digest) as record:
                if record.state is ImageState.PARTIAL:
                    fill(
                        build_layout(manifest), record.paths.partial, record.paths.journal, FakeOrigin().open
                    )
                    seal(record.paths.partial, record.paths.image, record.paths.journal)
        store.remove(digest)
        adopt(store, manifest)


def test_a_store_killed_at_any_change_is_whole_after_the_next_start(tmp_path: Path) -> None:
    died = 0
    for count in range(1, 200):
        root = tmp_path / f"s{count}"

        def work(count: int = count, root: Path = root) -> None:
            _kill_at(count)
            _one_life(root)

        ended = in_child(work)
        _check_after_kill(root)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        died += 1
    assert ended == 0
    assert died > 30


def _check_after_kill(root: Path) -> None:
    with Store(root, 2 * MIB) as store:
        store.sweep()
        for record in store.list_images():
            assert store.read_manifest(record.digest).digest == record.digest
            if record.state is ImageState.SEALED:
                assert record.size == build_layout(store.read_manifest(record.digest)).size
        assert {path.name for path in (root / "images").iterdir()} == names(store)
        assert len(store.load_key()) == 32
        assert list((root / "tmp").iterdir()) == []
    assert not list(root.rglob("*.tmp"))
    _one_life(root)


def test_a_disk_that_cannot_be_used_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataCacheError, match="cannot be used: Not a directory"):
        Store(tmp_path / "file" / "store")


claims = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 9), st.booleans()), max_size=8
)


@given(
    rows=claims,
    size=st.integers(0, 100),
    mine=st.integers(0, 50),
    budget=st.integers(0, 200),
    free=st.integers(0, 100),
)
def test_evicting_the_victims_always_makes_enough_room(
    rows: list[tuple[int, int, int, bool]], size: int, mine: int, budget: int, free: int
) -> None:
    others = [
        ImageUsage(f"c{n}", max(a, b) if not fixed else a, b, used, fixed)
        for n, (a, b, used, fixed) in enumerate(rows)
    ]
    wanted = ImageUsage("new", size, mine)

    def fits(left: list[ImageUsage]) -> bool:
        freed = sum(c.allocated_bytes for c in others if c not in left)
        pending = sum(max(0, c.reserved_bytes - c.allocated_bytes) for c in left)
        return sum(c.reserved_bytes for c in left) + size <= budget and free + freed + mine - pending >= size

    fixed = [c for c in others if c.in_use]
    try:
        gone = select_victims(wanted, others, budget, free)
    except NoSpace:
        assert not fits(fixed)
    else:
        left = [c for c in others if c.digest not in gone]
        assert {c.digest for c in fixed}.isdisjoint(gone)
        assert fits(left)
        if gone:
            last = next(c for c in others if c.digest == gone[-1])
            assert not fits([*left, last]), "one fewer would not have done"
            assert all(c.last_used >= last.last_used for c in left if not c.in_use)


def test_a_record_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    durable_files.write_json(path, {"format": 1, "a": "é"})
    assert durable_files.read_json(path, 1) == {"format": 1, "a": "é"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def die_in_the_middle() -> None:
        real: Callable[[int], None] = os.fsync
        os.fsync = lambda fd: (real(fd), os.kill(os.getpid(), signal.SIGKILL))[0]
        durable_files.write_json(path, {"format": 1, "a": "new"})

    assert in_child(die_in_the_middle) == -signal.SIGKILL
    assert durable_files.read_json(path) == {"format": 1, "a": "é"}


def test_a_record_that_is_damaged_or_of_another_format_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for data in (b"{", b"[]", b"\xff"):
        path.write_bytes(data)
        with pytest.raises(DataCacheError, match="r.json is damaged"):
            durable_files.read_json(path)
    durable_files.write_json(path, {"format": 2})
    with pytest.raises(DataCacheError, match=r"format 2, this driver reads 1"):
        durable_files.read_json(path, 1)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "r.json"
    folder.mkdir()
    (folder / "x").touch()
    with pytest.raises(OSError):
        durable_files.write_json(folder, {"format": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
