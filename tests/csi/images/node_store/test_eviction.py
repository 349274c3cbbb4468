"""Room in the store: who is evicted, what is reserved, and what is refused."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from csi.errors import Busy, NoSpace, NotFound
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store
from tests.csi.images.stores import MIB, names, put, want


def test_the_least_recently_used_go_first_and_only_as_many_as_needed(store: Store) -> None:
    images = [put(store, f"i{n}", 30 * MIB, used) for n, used in enumerate([5, 1, 9])]
    new = want(store, "new", 30 * MIB)
    with store.reserve(new):
        assert names(store) == {images[0], images[2], new}


def test_touching_an_image_saves_it(store: Store) -> None:
    images = [put(store, f"i{n}", 30 * MIB, used) for n, used in enumerate([-1e9, -9e8, -8e8])]
    store.touch(images[0])
    with store.reserve(want(store, "new", 30 * MIB)):
        assert images[0] in names(store)
        assert images[1] not in names(store)


def test_mounted_images_stay_and_what_cannot_fit_is_refused_with_both_numbers(store: Store) -> None:
    mounted = put(store, "mounted", 60 * MIB, 0)
    idle = put(store, "idle", 30 * MIB, 1)
    with pytest.raises(
        NoSpace,
        match=r"needs 50\.0 MiB, .* room for 40\.0 MiB: .*budget is 100\.0 MiB, 60\.0 MiB are mounted",
    ):
        store.reserve(want(store, "new", 50 * MIB), lambda: {mounted}).__enter__()
    assert {mounted, idle} <= names(store), "what would not help is not evicted"
    with store.reserve(want(store, "new", 50 * MIB)):
        assert idle in names(store)
        assert mounted not in names(store)


def test_a_reservation_counts_before_a_byte_is_written_and_is_given_back(store: Store) -> None:
    first, second = want(store, "one", 60 * MIB), want(store, "two", 60 * MIB)
    with store.reserve(first):
        with pytest.raises(NoSpace, match=r"room for 40\.0 MiB"):
            store.reserve(second).__enter__()
        with pytest.raises(Busy):
            store.reserve(first).__enter__()
        with pytest.raises(Busy):
            store.remove(first)
    with store.reserve(second):
        pass


def test_a_partial_image_that_nobody_fills_makes_room_too(store: Store) -> None:
    left = put(store, "left", 60 * MIB, 0, ImageState.PARTIAL)
    with store.reserve(want(store, "new", 60 * MIB)):
        assert left not in names(store)


def test_going_on_with_a_partial_image_needs_no_second_room(store: Store) -> None:
    partial = put(store, "p", 90 * MIB, 0, ImageState.PARTIAL)
    with store.reserve(partial) as record:
        assert record.allocated >= 90 * MIB


def test_a_held_image_is_neither_evicted_nor_removed(store: Store) -> None:
    held = put(store, "held", 60 * MIB, 0)
    with store.prevent_eviction(held):
        with pytest.raises(NoSpace):
            store.reserve(want(store, "new", 60 * MIB)).__enter__()
        with pytest.raises(Busy):
            store.remove(held)
    with store.reserve(want(store, "new", 60 * MIB)):
        assert held not in names(store)
    with pytest.raises(NotFound), store.prevent_eviction(held):
        pass


def test_what_is_mounted_while_room_is_sought_is_not_evicted(store: Store) -> None:
    """A volume that holds an image and mounts it cannot slip in between the look at the mounts and the
    choice of who goes."""
    slips_in = put(store, "slips in", 60 * MIB, 0)
    mounted: set[str] = set()

    def mount() -> None:
        with suppress(NotFound), store.prevent_eviction(slips_in):
            mounted.add(slips_in)

    stage = threading.Thread(target=mount)

    def in_use() -> set[str]:
        seen = set(mounted)
        stage.start()
        stage.join(0.3)
        return seen

    with store.reserve(want(store, "new", 60 * MIB), in_use):
        pass
    stage.join()
    assert (slips_in in mounted) == (slips_in in names(store))


def test_the_real_free_space_counts_as_well_as_the_budget(tmp_path: Path) -> None:
    at = tmp_path / "disk"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(at)], check=True)
    try:
        with Store(at / "store", 1000 * MIB) as store:
            old = put(store, "old", 20 * MIB, 0)
            with pytest.raises(
                NoSpace, match=r"needs 60\.0 MiB, .* room for (49\.\d|50\.0) MiB: its file system"
            ):
                store.reserve(want(store, "big", 60 * MIB)).__enter__()
            with store.reserve(want(store, "fits", 25 * MIB)):
                assert old in names(store)
                with store.reserve(want(store, "too", 20 * MIB)):
                    assert old not in names(store), "what the first reserved is not there for the second"
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_reserving_what_was_never_resolved_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.reserve("0" * 64).__enter__()
    with pytest.raises(NotFound):
        store.touch("0" * 64)
    assert store.find_sealed("0" * 64) is None
    assert store.find_partial("0" * 64) is None
    store.remove("0" * 64)


def test_many_threads_never_reserve_more_than_the_budget(store: Store) -> None:
    digests = [want(store, f"t{n}", 30 * MIB) for n in range(8)]
    inside, most, lock = [0], [0], threading.Lock()
    gate = threading.Barrier(len(digests))

    def work(digest: str) -> None:
        gate.wait()
        try:
            with store.reserve(digest):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                threading.Event().wait(0.05)
                with lock:
                    inside[0] -= 1
        except NoSpace:
            pass

    threads = [threading.Thread(target=work, args=(digest,)) for digest in digests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 3
