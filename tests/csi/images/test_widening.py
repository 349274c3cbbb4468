"""A fill reads over more connections as long as more bring more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.images.chunks import CHUNK
from csi.images.fill import fill
from csi.images.layout import lay_out
from csi.images.widening import FEW, Widening
from csi.spec.manifest import Entry, Kind, build
from tests.csi.images.origin import FakeOrigin


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def settled(most: int, rate: Callable[[int], float]) -> list[int]:
    """The numbers of readers that were tried, for an origin that gives `rate` bytes/s to so many."""
    clock = Clock()
    widening = Widening(most, CHUNK, clock)
    tried, fetched = [widening.readers], 0.0
    for _ in range(1000):
        clock.now += 0.1
        fetched += 0.1 * rate(widening.readers)
        widening.look(int(fetched))
        if widening.readers != tried[-1]:
            tried.append(widening.readers)
    return tried


@pytest.mark.parametrize("each", [1e6, 50e6], ids=["slow", "fast"])
def test_an_origin_that_gives_each_connection_its_share_gets_all_of_them(each: float) -> None:
    assert settled(16, lambda readers: readers * each) == [FEW, 8, 16]


def test_an_origin_that_a_few_use_up_keeps_the_few() -> None:
    assert settled(16, lambda readers: 200e6) == [FEW, 8, FEW]


def test_an_origin_that_some_more_use_up_gets_those() -> None:
    assert settled(16, lambda readers: min(readers, 8) * 30e6) == [FEW, 8, 16, 8]


@pytest.mark.parametrize("most", [1, FEW])
def test_there_are_never_more_than_allowed(most: int) -> None:
    assert settled(most, lambda readers: readers * 50e6) == [most]


def test_an_origin_that_gives_nothing_is_not_asked_more_often() -> None:
    assert settled(16, lambda readers: 0.0) == [FEW]


def test_a_fill_from_an_origin_that_answers_late_opens_more_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi.images.widening._WINDOW_SECONDS", 0.05)
    origin = FakeOrigin(lambda *_: time.sleep(0.05))
    layout = lay_out(build([Entry("file", Kind.FILE, size=2 << 20, digest="token:1")], {}))
    fill(layout, tmp_path / "partial", tmp_path / "journal", origin.open, connections=16, chunk_bytes=4096)
    assert FEW < origin.opened == origin.closed <= 16
