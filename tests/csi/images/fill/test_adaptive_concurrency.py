"""A fill reads over more connections as long as more bring more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.images.fill.adaptive_concurrency import INITIAL_READERS, AdaptiveConcurrency
from csi.images.fill.fill import fill
from csi.images.layout.chunks import CHUNK_BYTES
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import Entry, EntryKind, build_manifest
from tests.csi.images.origin import FakeOrigin


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Fill:
    """A fill in a time of its own, from an origin that gives `rate` bytes/s to so many readers."""

    def __init__(self, most: int, rate: Callable[[int], float]) -> None:
        self.clock, self.rate, self.fetched = Clock(), rate, 0.0
        self.widening = AdaptiveConcurrency(most, CHUNK_BYTES, self.clock)
        self.tried = [self.widening.reader_limit]

    def run(self, seconds: float) -> list[int]:
        """The numbers of readers that were tried so far, each change once."""
        for _ in range(int(10 * seconds)):
            self.clock.now += 0.1
            self.fetched += 0.1 * self.rate(self.widening.reader_limit)
            self.widening.adapt(int(self.fetched))
            if self.widening.reader_limit != self.tried[-1]:
                self.tried.append(self.widening.reader_limit)
        return self.tried


def settled(most: int, rate: Callable[[int], float]) -> list[int]:
    return Fill(most, rate).run(100)


@pytest.mark.parametrize("each", [1e6, 50e6], ids=["slow", "fast"])
def test_an_origin_that_gives_each_connection_its_share_gets_all_of_them(each: float) -> None:
    assert settled(16, lambda readers: readers * each)[:3] == [INITIAL_READERS, 8, 16]


def test_an_origin_that_a_few_use_up_keeps_the_few_but_for_a_try_now_and_then() -> None:
    tried = settled(16, lambda readers: 200e6)
    assert tried[:3] == [INITIAL_READERS, 8, INITIAL_READERS]
    assert tried[3:] in ([INITIAL_READERS + 1, INITIAL_READERS] * n for n in range(2, 10))


def test_an_origin_that_some_more_use_up_gets_those() -> None:
    assert settled(16, lambda readers: min(readers, 8) * 30e6)[:4] == [INITIAL_READERS, 8, 16, 8]


def test_one_more_is_added_as_long_as_it_brings_more() -> None:
    assert settled(16, lambda readers: min(readers, 4.9) * 30e6)[:6] == [INITIAL_READERS, 8, 4, 5, 6, 5]


def test_a_plea_for_patience_halves_the_readers_and_one_by_one_they_come_back() -> None:
    fill = Fill(16, lambda readers: readers * 30e6)
    fill.run(10)
    assert fill.tried == [INITIAL_READERS, 8, 16]
    fill.widening.halve()
    assert fill.widening.reader_limit == 8
    assert fill.run(100)[3:] == [8, 9, 10, 11, 12, 13, 14, 15, 16]


def test_as_many_as_were_too_many_are_not_tried_again_for_a_while_each_time_longer() -> None:
    fill = Fill(16, lambda readers: readers * 30e6)
    fill.run(10)
    for seconds in (25, 55):
        fill.widening.halve()
        fill.run(seconds)
        assert fill.widening.reader_limit < 16
        fill.run(100)
        assert fill.widening.reader_limit == 16


def test_there_is_always_one_reader() -> None:
    fill = Fill(16, lambda readers: 30e6)
    for _ in range(10):
        fill.widening.halve()
    assert fill.widening.reader_limit == 1
    fill.run(700)
    assert fill.tried[1] == 1
    assert set(fill.tried[1:]) == {1, 2}


def test_an_origin_without_ranges_has_one_reader_for_good() -> None:
    fill = Fill(16, lambda readers: readers * 30e6)
    fill.widening.limit_to_one_reader()
    assert fill.run(100) == [INITIAL_READERS, 1]


@pytest.mark.parametrize("most", [1, INITIAL_READERS])
def test_there_are_never_more_than_allowed(most: int) -> None:
    assert settled(most, lambda readers: readers * 50e6) == [most]


def test_an_origin_that_gives_nothing_is_not_asked_more_often() -> None:
    assert settled(16, lambda readers: 0.0) == [INITIAL_READERS]


def test_a_fill_from_an_origin_that_answers_late_opens_more_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csi.images.fill.adaptive_concurrency._MEASURING_WINDOW", 0.05)
    origin = FakeOrigin(lambda *_: time.sleep(0.05))
    layout = build_layout(build_manifest([Entry("file", EntryKind.FILE, size=2 << 20, digest="token:1")], {}))
    fill(
        layout, tmp_path / "partial", tmp_path / "journal", origin.open, max_connections=16, chunk_bytes=4096
    )
    assert INITIAL_READERS < origin.most_open <= 16
    assert origin.opened == origin.closed
