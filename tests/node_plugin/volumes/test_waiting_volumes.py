"""Calls that wait for a fill, and volumes that are taken away meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from csi.errors import Busy, DataCacheError
from tests.node_plugin.node import Node


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    answers: list[object] = []

    def run() -> None:
        try:
            answers.append(work())
        except DataCacheError as error:
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers


def test_a_waiting_call_hears_how_far_the_fill_is_and_the_next_one_finds_it_further(node: Node) -> None:
    node.source.go_fill.clear()
    with pytest.raises(Busy, match="1 of 5 MiB, 1.0 MiB/s, about 4 s left; call again"):
        while True:
            try:
                node.stage(seconds=0.05)
            except Busy as busy:
                if "1 of 5" in str(busy):
                    raise
    node.source.go_fill.set()
    node.stage()
    assert node.shown == ["staging"]
    assert node.source.operations.count("fill-image") == 1


@pytest.mark.parametrize("inline", [True, False])
def test_taking_a_volume_away_ends_its_waiting_and_leaves_nothing(node: Node, inline: bool) -> None:
    node.source.go_fill.clear()
    thread, answers = in_background(node.inline if inline else node.stage)
    assert node.source.filling.acquire(timeout=20)
    if inline:
        node.unpublish("csi-1")
    else:
        node.unstage()
    thread.join(20)
    assert isinstance(answers[0], Busy)
    assert "being un" in str(answers[0])
    assert node.left == []
    assert node.images.list_in_use() == set()
    node.source.go_fill.set()


def test_a_volume_that_is_taken_away_between_its_fill_and_its_mount_is_not_mounted(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.stage("other", "staging2")
    sealed = node.store.find_sealed
    monkeypatch.setattr(node.store, "find_sealed", lambda digest: (node.unstage(), sealed(digest))[1])
    with pytest.raises(Busy, match="being unstaged"):
        node.stage(secrets={"token": "new"})
    assert node.shown == ["staging2"]


def test_a_fill_that_is_waited_for_by_two_volumes_goes_on_when_one_is_taken_away(node: Node) -> None:
    node.source.go_fill.clear()
    first, answers1 = in_background(lambda: node.stage("one", "s1"))
    second, answers2 = in_background(lambda: node.stage("two", "s2"))
    assert node.source.filling.acquire(timeout=20)
    while len(node.room._waiting) < 2:
        pass
    node.unstage("one", "s1")
    first.join(20)
    node.source.go_fill.set()
    second.join(20)
    assert isinstance(answers1[0], Busy)
    assert answers2 == [None]
    assert node.shown == ["s2"]


def test_an_image_is_not_unmounted_under_a_volume_on_its_way_to_it(node: Node) -> None:
    node.stage("one", "s1")
    with node.images.hold_mounts(node.source.digest):
        node.unstage("one", "s1")
        assert len(node.image_mounts) == 1
    node.stage("two", "s2")
    node.unstage("two", "s2")
    assert node.left == []
