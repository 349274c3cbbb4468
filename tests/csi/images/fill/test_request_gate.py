"""When readers may ask: in turn, as many at once as the origin bears, none while it asks for patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.errors import FillStopped, OriginThrottled, OriginTimedOut, OriginUnavailable, RangesIgnored
from csi.images.fill import fetch, request_gate
from csi.images.fill.adaptive_concurrency import FEW, Widening
from csi.images.fill.fetch import PatientReader
from csi.images.fill.fill import fill
from csi.images.fill.request_gate import Flow
from csi.images.layout.chunks import CHUNK
from csi.images.layout.layout import lay_out
from csi.manifest.manifest import Entry, build
from tests.csi.images.origin import FakeOrigin
from tests.csi.images.trees import file

FILE = file("a", 5)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(fetch, "LONGEST_PAUSE", 0.01)


def made(most: int = 16, pause: Callable[[float], None] = time.sleep) -> Flow:
    return Flow(Widening(most, CHUNK), pause)


def read(reader: PatientReader) -> bytes:
    buffer = bytearray(5)
    reader.read_into(FILE, 0, memoryview(buffer))
    return bytes(buffer)


def test_what_one_reader_is_asked_for_all_wait_for() -> None:
    shared, asked = made(), []

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise OriginThrottled("slow down", 0.5)

    origin = FakeOrigin(fault)

    def work() -> None:
        with PatientReader(origin.open, shared) as reader:
            read(reader)

    first = threading.Thread(target=work)
    first.start()
    while not asked:
        time.sleep(0.001)
    time.sleep(0.05)
    others = [threading.Thread(target=work) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert len(asked) == 5
    assert min(asked[1:]) - asked[0] >= 0.5


@pytest.mark.parametrize("error", [OriginThrottled("slow down"), OriginTimedOut("silent")])
def test_failures_of_the_same_moment_halve_the_readers_once(error: OriginUnavailable) -> None:
    shared, together = made(), threading.Barrier(FEW)

    def work() -> None:
        with pytest.raises(type(error)), shared.turn(0):
            together.wait()
            raise error

    threads = [threading.Thread(target=work) for _ in range(FEW)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.readers == FEW // 2


def test_other_failures_change_nothing() -> None:
    shared = made()
    with pytest.raises(OriginUnavailable), shared.turn(0):
        raise OriginUnavailable("reset")
    assert shared.readers == FEW


def test_no_more_ask_than_there_are_to_be_and_the_lowest_rank_is_first() -> None:
    shared = made()
    shared.one_by_one()
    order: list[int] = []

    def work(rank: int) -> None:
        with shared.turn(rank):
            order.append(rank)

    with shared.turn(0):
        threads = [threading.Thread(target=work, args=(rank,)) for rank in (7, 3, 9, 5)]
        for thread in threads:
            thread.start()
        while len(shared._waiting) < 4:
            time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [3, 5, 7, 9]


def test_who_waits_for_a_turn_hears_that_the_fill_ends() -> None:
    def stopped(seconds: float) -> None:
        raise FillStopped("enough")

    shared = made(pause=stopped)
    shared.hold(100)
    with pytest.raises(FillStopped), shared.turn(0):
        pass
    assert shared._waiting == []


def test_pauses_grow_and_are_never_twice_the_same() -> None:
    pauses: list[float] = []
    errors = [OriginUnavailable("reset") for _ in range(3)]

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if errors:
            raise errors.pop()

    with PatientReader(FakeOrigin(fault).open, made(pause=pauses.append)) as reader:
        assert len(read(reader)) == reader.fetched == 5
    assert [0.0005 * 2**n <= pause <= 0.001 * 2**n for n, pause in enumerate(pauses)] == [True, True, True]


def test_an_origin_that_cannot_give_ranges_is_read_by_one_reader_in_order(tmp_path: Path) -> None:
    known, asked = threading.Event(), []

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if offset and not known.is_set():
            known.set()
            raise RangesIgnored("all or nothing")
        if known.is_set():
            asked.append(offset)

    layout = lay_out(build([file("big", 400_000)], {}))
    fill(layout, tmp_path / "partial", tmp_path / "journal", FakeOrigin(fault).open, connections=4, chunk_bytes=4096)
    # Those that were asking when it became known were not in order yet.
    later = asked[2 * FEW :]
    assert len(later) > 80 and later == sorted(later)


def test_an_origin_that_bears_few_at_once_is_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_gate, "_LOOK_SECONDS", 0.01)
    busy, refused = threading.Semaphore(1), []

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if not busy.acquire(blocking=False):
            refused.append(offset)
            raise OriginThrottled("one at a time")
        time.sleep(0.001)
        busy.release()

    layout = lay_out(build([file("big", 400_000)], {}))
    fill(layout, tmp_path / "partial", tmp_path / "journal", FakeOrigin(fault).open, connections=16, chunk_bytes=4096)
    assert 0 < len(refused) <= 20
