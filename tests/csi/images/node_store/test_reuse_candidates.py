"""Which images a fill may copy from: those of its own place, as long as there is room for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from csi.errors import Busy, NoSpace, NotFound
from csi.images.node_store.records import ImageState
from csi.images.node_store.reuse_candidates import MAX_REUSE_CANDIDATES, reserve_with_candidates
from csi.images.node_store.store import Store
from tests.csi.images.stores import MIB, names, put, want

MINE, THEIRS = "1" * 64, "2" * 64


def known(store: Store, name: str, size: int, used: float, place: str) -> str:
    digest = put(store, name, size, used)
    store.mark_verified(digest, place)
    return digest


def chosen(store: Store, digest: str, place: str = MINE) -> list[str]:
    with reserve_with_candidates(store, digest, place, frozenset) as folders:
        return [folder.name for folder in folders]


def test_only_sealed_images_of_the_place_are_donors_the_last_used_first(store: Store) -> None:
    old, new = known(store, "old", MIB, 1, MINE), known(store, "new", MIB, 2, MINE)
    known(store, "theirs", MIB, 3, THEIRS)
    put(store, "of nobody known", MIB, 4)
    put(store, "partial", MIB, 5, ImageState.PARTIAL)
    assert chosen(store, want(store, "next", MIB)) == [new, old]
    assert chosen(store, want(store, "next", MIB), "3" * 64) == []


def test_a_few_are_enough(store: Store) -> None:
    digests = [known(store, f"r{n}", MIB, n, MINE) for n in range(MAX_REUSE_CANDIDATES + 3)]
    assert chosen(store, want(store, "next", MIB)) == digests[:2:-1]


def test_a_donor_stays_while_it_is_copied_from_and_others_go_before_it(store: Store) -> None:
    donor = known(store, "donor", 40 * MIB, 1, MINE)
    other = put(store, "other", 40 * MIB, 2)
    wanted = want(store, "next", 40 * MIB)
    with reserve_with_candidates(store, wanted, MINE, frozenset) as folders:
        assert [folder.name for folder in folders] == [donor]
        assert names(store) == {donor, wanted}
        with pytest.raises(Busy):
            store.remove(donor)
    store.remove(donor)
    assert other not in names(store)


def test_a_donor_goes_before_a_fill_fails_for_want_of_room(store: Store) -> None:
    kept, gone = known(store, "kept", 10 * MIB, 2, MINE), known(store, "gone", 50 * MIB, 1, MINE)
    wanted = want(store, "next", 80 * MIB)
    with reserve_with_candidates(store, wanted, MINE, frozenset) as folders:
        assert [folder.name for folder in folders] == [kept]
        assert gone not in names(store)


def test_no_room_even_without_donors_is_said_and_nothing_goes(store: Store) -> None:
    donor = known(store, "donor", 10 * MIB, 1, MINE)
    with (
        pytest.raises(NoSpace),
        reserve_with_candidates(store, want(store, "next", 120 * MIB), MINE, frozenset),
    ):
        pass
    assert donor in names(store)
    store.remove(donor)


def test_what_ends_the_block_is_the_callers_and_everything_is_let_go(store: Store) -> None:
    donor, wanted = known(store, "donor", MIB, 1, MINE), want(store, "next", MIB)
    with pytest.raises(NoSpace, match="mine"), reserve_with_candidates(store, wanted, MINE, frozenset):
        raise NoSpace("mine")
    store.remove(donor)
    store.remove(wanted)
    with pytest.raises(NotFound), reserve_with_candidates(store, wanted, MINE, frozenset):
        pass


def test_a_store_without_images_has_no_donors(tmp_path: Path) -> None:
    with Store(tmp_path / "s", MIB) as store:
        assert chosen(store, want(store, "first", 1000)) == []
