"""A fill's bytes per second, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from csi.concurrency.rate_limit import RateLimiter
from csi.images.fill import paced_reader
from csi.images.fill.paced_reader import limit_read_rate
from csi.manifest.manifest import Entry, EntryKind
from csi.manifest.reader import Reader


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_what_is_taken_at_once_takes_its_time() -> None:
    clock = Clock()
    pace = RateLimiter(1000, clock, clock.sleep)
    for _ in range(10):
        pace.wait_for(500)
    assert clock.now == 105.0


def test_what_was_not_taken_is_lost_but_for_a_moment() -> None:
    clock = Clock()
    pace = RateLimiter(1000, clock, clock.sleep)
    clock.now += 60
    pace.wait_for(1000)
    assert 160.9 < clock.now < 161.0


class Nothing:
    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Any bytes will do."""


@contextmanager
def nothing() -> Iterator[Reader]:
    yield Nothing()


@pytest.mark.parametrize(
    ("rate", "folders", "seconds"),
    [
        (None, {}, {"slow/a": 0, "slower": 0, "fast/slow/a": 0}),
        (None, {"slow": 100}, {"slow/a": 10, "slower": 0, "fast/slow/a": 0}),
        (1000, {"slow": 100}, {"slow/a": 10, "slower": 1, "fast/slow/a": 1}),
        (100, {"slow": 1000}, {"slow/a": 10, "slower": 10, "fast/slow/a": 10}),
    ],
)
def test_a_folder_may_have_a_limit_of_its_own(
    monkeypatch: pytest.MonkeyPatch, rate: int | None, folders: dict[str, int], seconds: dict[str, float]
) -> None:
    clock = Clock()
    monkeypatch.setattr(paced_reader, "RateLimiter", lambda limit: RateLimiter(limit, clock, clock.sleep))
    open_reader = limit_read_rate(nothing, rate, folders)
    for path, expected in seconds.items():
        begun = clock.now
        with open_reader() as reader, open_reader() as other:
            for each in (reader, other):
                each.read_into(Entry(path, EntryKind.FILE, size=500), 0, memoryview(bytearray(500)))
        assert clock.now - begun == pytest.approx(expected, abs=0.2)
