"""What every registry of volumes must do; the kinds are in conftest.py."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi.errors import DataCacheError
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
from csi.parameters.performance_keys import Performance
from csi.parameters.pvc import PvcReference
from csi.registry.volumes.directory import DirectoryVolumeRegistry
from csi.registry.volumes.record import VolumeRecord, WatchedVolumes
from tests.csi.registry.kinds import COMMIT, Make, Told, record

UID = "0f0e0d0c-0b0a-0908-0706-050403020100"


def ids(records: list[VolumeRecord]) -> list[str]:
    return [found.id for found in records]


def test_a_record_is_found_as_it_was_put_also_after_a_restart(make: Make, tmp_path: Path) -> None:
    plain = record("dc-1")
    nas = CacheSpec(NasSpec("nas", "/x", "4.0", 1, 2, 0.5, 9, 3, 4), preserve_ownership=True)
    full = record(
        "dc-2",
        requested_spec=nas,
        spec=nas,
        downgrade_writers=True,
        cloned_from="dc-1",
        created_at=5.5,
        performance=Performance("AutoPL", 7, False),
    )
    full = replace(full, name=f"pvc-{UID}", pvc=PvcReference("team-a", "models", UID))
    registry = make(tmp_path)
    for kept in (plain, full):
        registry.put(kept)
    for again in (registry, make(tmp_path)):
        assert [again.get("dc-1"), again.get("dc-2")] == [plain, full]
        assert again.list_page("", 0) == [plain, full]


def test_putting_again_replaces(make: Make, tmp_path: Path) -> None:
    registry = make(tmp_path)
    registry.put(record("dc-1"))
    registry.put(record("dc-1", performance=Performance(provisioned_iops=9)))
    assert registry.list_page("", 0) == [record("dc-1", performance=Performance(provisioned_iops=9))]


def test_deleting_is_done_once_and_not_undone_by_a_restart(make: Make, tmp_path: Path) -> None:
    registry = make(tmp_path)
    registry.put(record("dc-1"))
    for _ in range(2):
        registry.delete("dc-1")
        assert registry.get("dc-1") is None
        assert registry.list_page("", 0) == make(tmp_path).list_page("", 0) == []


@pytest.mark.parametrize(
    "volume_id",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "a/b",
        "/etc/passwd",
        "a\0b",
        "x" * 5000,
        "fake vol id",
        "ü",
        "*",
        ".hidden",
    ],
)
def test_any_text_may_be_asked_for_as_an_id(make: Make, tmp_path: Path, volume_id: str) -> None:
    registry = make(tmp_path)
    registry.put(record("dc-1"))
    assert registry.get(volume_id) is None
    registry.delete(volume_id)
    assert ids(registry.list_page("", 0)) == ["dc-1"]


def test_pages_follow_each_other_in_the_order_of_ids(make: Make, tmp_path: Path) -> None:
    registry = make(tmp_path)
    for number in (4, 1, 3, 0, 2):
        registry.put(record(f"dc-{number}"))
    assert ids(registry.list_page("", 2)) == ["dc-0", "dc-1"]
    assert ids(registry.list_page("dc-1", 2)) == ["dc-2", "dc-3"]
    assert ids(registry.list_page("dc-3", 2)) == ["dc-4"]
    assert registry.list_page("dc-4", 2) == []
    assert ids(registry.list_page("dc-2x", 9)) == ["dc-3", "dc-4"]


NUMBERS = st.integers(0, 12)


@settings(max_examples=40, deadline=None)
@given(
    before=st.sets(NUMBERS),
    churn=st.lists(st.tuples(st.booleans(), NUMBERS), max_size=12),
    limit=st.integers(1, 4),
)
def test_volumes_that_come_and_go_neither_shift_nor_repeat_the_others(
    tmp_path_factory: pytest.TempPathFactory,
    make: Make,
    before: set[int],
    churn: list[tuple[bool, int]],
    limit: int,
) -> None:
    registry = make(tmp_path_factory.mktemp("registry"))
    name = "dc-{:03}".format
    for number in before:
        registry.put(record(name(number)))
    touched = {name(number) for _, number in churn}
    seen: list[str] = []
    changes = iter(churn)
    while page := registry.list_page(seen[-1] if seen else "", limit):
        seen += ids(page)
        for comes, number in [change for change in [next(changes, None)] if change]:
            if comes:
                registry.put(record(name(number)))
            else:
                registry.delete(name(number))
    assert seen == sorted(set(seen))
    untouched = {name(number) for number in before} - touched
    assert untouched <= set(seen)


def test_many_threads_may_work_at_once(make: Make, tmp_path: Path) -> None:
    registry = make(tmp_path)
    failures: list[BaseException] = []

    def work(base: int) -> None:
        try:
            for number in range(8):
                registry.put(record(f"dc-{base}-{number}"))
                registry.list_page("", 5)
                if number % 2:
                    registry.delete(f"dc-{base}-{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(base,)) for base in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = sorted(f"dc-{base}-{number}" for base in range(6) for number in (0, 2, 4, 6))
    assert ids(registry.list_page("", 0)) == ids(make(tmp_path).list_page("", 0)) == expected


def test_a_context_tells_a_node_all_it_needs(make: Make, tmp_path: Path) -> None:
    registry = make(tmp_path)
    registry.put(record("dc-1", downgrade_writers=True, performance=Performance("AutoPL", None, True)))
    found = registry.get("dc-1")
    assert found is not None
    assert found.to_context() == {
        "type": "URL",
        "repoSource": "HuggingFace/Model",
        "repoId": "org/name",
        "revision": COMMIT,
        "allowPatterns": "*.json\na,b",
        "performanceLevel": "AutoPL",
        "burstingEnabled": "true",
        "writerAccessModes": "downgrade",
        "manifestDigest": "a" * 64,
        "capacityBytes": str(2**30),
    }


def test_a_watcher_is_told_of_what_another_puts_replaces_and_deletes(make: Make, tmp_path: Path) -> None:
    registry, other, told = make(tmp_path), make(tmp_path), Told()
    with registry.watch(told):
        for writer in (other, registry):
            writer.put(record("dc-1"))
            told.until("dc-1")
            writer.put(record("dc-1", performance=Performance(read_iops=9)))
            told.until("dc-1")
            assert registry.get("dc-1") == record("dc-1", performance=Performance(read_iops=9))
            writer.delete("dc-1")
            told.until("dc-1")
            assert registry.get("dc-1") is None
    assert threading.get_ident() not in told.threads


def test_a_watcher_is_told_by_the_id_of_what_changed_and_of_nothing_else(make: Make, tmp_path: Path) -> None:
    registry, told = make(tmp_path), Told()
    registry.put(record("dc-0"))
    with registry.watch(told):
        make(tmp_path).put(record("dc-1"))
        make(tmp_path).put(record("dc-2"))
        assert told.until("dc-2") == {"dc-1", "dc-2"}
    assert told.silent
    make(tmp_path).put(record("dc-3"))
    assert told.silent, "the block has ended"


def test_several_watch_one_registry(make: Make, tmp_path: Path) -> None:
    first, second = Told(), Told()
    with make(tmp_path).watch(first), make(tmp_path).watch(second):
        make(tmp_path).put(record("dc-1"))
        first.until("dc-1")
        second.until("dc-1")


def test_a_watcher_that_fails_is_told_of_the_next_change_all_the_same(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry, told = make(tmp_path), Told()
    told.fault = RuntimeError("s3cr3t")
    with registry.watch(told):
        for volume_id in ("dc-1", "dc-2"):
            registry.put(record(volume_id))
            told.until(volume_id)
    logged = [getattr(line, "fields", {}) for line in caplog.records]
    assert logged == [{"name": "dc-1", "reason": "RuntimeError"}]
    assert "s3cr3t" not in caplog.text


def test_a_watcher_of_some_volumes_is_told_of_no_other(make: Make, tmp_path: Path) -> None:
    registry, other, told, wanted = make(tmp_path), make(tmp_path), Told(), WatchedVolumes(["dc-2"])
    for volume_id in ("dc-1", "dc-2"):
        registry.put(record(volume_id))
    with registry.watch(told, wanted):
        for volume_id in ("dc-1", "dc-2", "dc-3"):
            other.put(record(volume_id, performance=Performance(read_iops=9)))
        assert told.until("dc-2") == {"dc-2"}
        other.delete("dc-1")
        other.delete("dc-2")
        assert told.until("dc-2") == {"dc-2"}
    assert told.silent


def test_what_a_watcher_wants_later_is_told_at_once_and_from_then_on(make: Make, tmp_path: Path) -> None:
    registry, other, told, wanted = make(tmp_path), make(tmp_path), Told(), WatchedVolumes()
    registry.put(record("dc-1"))
    with registry.watch(told, wanted):
        other.put(record("dc-1", performance=Performance(read_iops=8)))
        wanted.add("dc-1")
        told.until("dc-1")
        other.put(record("dc-1", performance=Performance(read_iops=9)))
        told.until("dc-1")


def test_what_a_watcher_does_not_want_any_more_is_not_told(make: Make, tmp_path: Path) -> None:
    registry, other, told, wanted = make(tmp_path), make(tmp_path), Told(), WatchedVolumes(["dc-1", "dc-2"])
    for volume_id in ("dc-1", "dc-2"):
        registry.put(record(volume_id))
    with registry.watch(told, wanted):
        wanted.discard("dc-1")
        for volume_id in ("dc-1", "dc-2"):
            other.put(record(volume_id, performance=Performance(read_iops=9)))
        assert told.until("dc-2") == {"dc-2"}
    assert told.silent


def test_of_all_who_add_a_volume_at_once_one_does_and_all_learn_which(make: Make, tmp_path: Path) -> None:
    registries, kept, gate = [make(tmp_path)] * 3, [], threading.Barrier(6)

    def add(number: int) -> None:
        mine = record("dc-1", digest=f"{number:064x}", created_at=1.5 + number)
        gate.wait(30)
        kept.append(registries[number % 3].add(mine))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 6
    assert set(map(repr, kept)) == {repr(registries[0].get("dc-1"))}


def test_adding_leaves_what_is_there(make: Make, tmp_path: Path) -> None:
    registry, first, second = (
        make(tmp_path),
        record("dc-1", created_at=1.0),
        record("dc-1", created_at=2.0, digest="b" * 64),
    )
    assert registry.add(first) == first
    assert registry.add(second) == first == registry.get("dc-1")


def test_a_change_is_made_of_what_is_there(make: Make, tmp_path: Path) -> None:
    registry = make(tmp_path)
    registry.put(record("dc-1", performance=Performance(read_iops=5, read_bandwidth=2**20)))
    wanted = record("dc-1", performance=Performance(read_iops=6))
    assert (
        registry.change(
            "dc-1",
            lambda found: replace(
                found, performance=Performance(read_iops=(found.performance.read_iops or 0) + 1)
            ),
        )
        == wanted
    )
    assert make(tmp_path).get("dc-1") == wanted, "a key that was left out is gone"
    assert registry.change("dc-1", lambda found: found) == wanted


def test_a_change_that_fails_changes_nothing_and_one_of_nothing_adds_nothing(
    make: Make, tmp_path: Path
) -> None:
    registry = make(tmp_path)
    registry.put(record("dc-1"))

    def refuse(found: VolumeRecord) -> VolumeRecord:
        raise DataCacheError(f"not {found.id}")

    with pytest.raises(DataCacheError, match="not dc-1"):
        registry.change("dc-1", refuse)
    assert registry.change("dc-2", refuse) is None
    assert registry.list_page("", 0) == [record("dc-1")]


def test_no_change_of_several_at_once_is_lost(make: Make, tmp_path: Path) -> None:
    registry = make(tmp_path)
    registry.put(record("dc-1", performance=Performance(read_iops=1)))

    def one_more(found: VolumeRecord) -> VolumeRecord:
        return replace(found, performance=Performance(read_iops=(found.performance.read_iops or 0) + 1))

    threads = [threading.Thread(target=registry.change, args=("dc-1", one_more)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get("dc-1") == record("dc-1", performance=Performance(read_iops=5))


def test_a_watcher_whose_events_were_lost_is_told_of_every_volume(tmp_path: Path) -> None:
    """A watcher that is held up longer than the kernel keeps events for it is then told of what is there
    and of what it knew."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    registry, told, held = DirectoryVolumeRegistry(tmp_path), Told(), threading.Event()
    for volume_id in ("dc-gone", "dc-kept"):
        registry.put(record(volume_id))

    def slow(volume_id: str) -> None:
        told(volume_id)
        assert held.wait(60)

    with registry.watch(slow):
        registry.put(record("dc-first"))
        told.until("dc-first")
        for number in range(most // 2 + 2):
            (tmp_path / "volumes" / f"{number % 2}").mkdir()
            (tmp_path / "volumes" / f"{number % 2}").rmdir()
        registry.delete("dc-gone")
        registry.put(record("dc-new"))
        held.set()
        assert [told.calls.get(timeout=30) for _ in range(4)] == ["dc-first", "dc-gone", "dc-kept", "dc-new"]


def test_a_registry_whose_folder_is_gone_cannot_be_watched(tmp_path: Path) -> None:
    registry = DirectoryVolumeRegistry(tmp_path)
    (tmp_path / "volumes").rmdir()
    with pytest.raises(DataCacheError, match="is gone"), registry.watch(Told()):
        pass


def test_a_record_of_0_1_0_whose_performance_keys_disagree_is_still_read(tmp_path: Path) -> None:
    """In a folder: 0.1.0 kept none in a cluster, and there the schema refuses them."""
    registry = DirectoryVolumeRegistry(tmp_path)
    registry.put(record("dc-1", performance=Performance("PL1", 7, True)))
    assert registry.list_page("", 0) == [record("dc-1", performance=Performance("PL1", 7, True))]


DAMAGE = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"7",
    b"{}",
    b'{"format": 1}',
    b'{"format": 2}',
    b'{"format": 1, "id": "dc-1", "context": {}, "asked": {}}',
    b'{"format": 1, "id": "dc-1", "context": 5, "asked": 5}',
    b'{"format": 1, "id": "dc-1", "context": {"repoId": 7}, "asked": {}}',
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_told_by_its_path_and_harms_no_other_volume(tmp_path: Path, damage: bytes) -> None:
    registry = DirectoryVolumeRegistry(tmp_path)
    for volume_id in ("dc-1", "dc-2"):
        registry.put(record(volume_id))
    path = tmp_path / "volumes/dc-1.json"
    path.write_bytes(damage)
    with pytest.raises(DataCacheError, match=r"volumes/dc-1\.json") as error:
        registry.get("dc-1")
    assert type(error.value) is DataCacheError, "no fault of the caller's"
    assert DirectoryVolumeRegistry(tmp_path).get("dc-2") == record("dc-2")
    registry.delete("dc-1")
    assert ids(registry.list_page("", 0)) == ["dc-2"]


def test_files_of_a_killed_controller_are_no_volumes(tmp_path: Path) -> None:
    DirectoryVolumeRegistry(tmp_path).put(record("dc-1"))
    (tmp_path / "volumes/.dc-2.json.0123.tmp").write_bytes(b"{")
    assert ids(DirectoryVolumeRegistry(tmp_path).list_page("", 0)) == ["dc-1"]


def test_only_its_owner_reads_a_registry(tmp_path: Path) -> None:
    DirectoryVolumeRegistry(tmp_path).put(record("dc-1"))
    assert (tmp_path / "volumes").stat().st_mode & 0o077 == 0
    assert (tmp_path / "volumes/dc-1.json").stat().st_mode & 0o077 == 0
