"""When readers may ask: in turn, as many at once as the origin bears, none while it asks for patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.errors import FillStopped, OriginThrottled, OriginTimedOut, OriginUnavailable, RangesIgnored
from csi.images.fill import request_gate, retrying_reader
from csi.images.fill.adaptive_concurrency import INITIAL_READERS, AdaptiveConcurrency
from csi.images.fill.fill import fill
from csi.images.fill.request_gate import RequestGate
from csi.images.fill.retrying_reader import RetryingReader
from csi.images.layout.chunks import CHUNK_BYTES
from csi.images.layout.layout import build_layout
from csi.manifest.manifest import Entry, build_manifest
from tests.csi.images.origin import FakeOrigin
from tests.csi.images.trees import file

FILE = file("a", 5)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_reader, "MIN_RETRY_PAUSE", 0.001)
    monkeypatch.setattr(retrying_reader, "MAX_RETRY_PAUSE", 0.01)


def made(most: int = 16, pause: Callable[[float], None] = time.sleep) -> RequestGate:
    return RequestGate(AdaptiveConcurrency(most, CHUNK_BYTES), pause)


def read(reader: RetryingReader) -> bytes:
    buffer = bytearray(5)
    reader.read_into(FILE, 0, memoryview(buffer))
    return bytes(buffer)


class Clock:
    """The time that a flow goes by, which goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_what_one_reader_is_asked_for_all_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(request_gate, "time", clock)
    shared, asked = made(), list[float]()

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        asked.append(clock.now)
        if len(asked) == 1:
            raise OriginThrottled("slow down", 60)

    origin = FakeOrigin(fault)

    def work() -> None:
        with RetryingReader(origin.open, shared) as reader:
            read(reader)

    first = threading.Thread(target=work)
    first.start()
    while not shared._waiting:
        time.sleep(0.001)
    others = [threading.Thread(target=work) for _ in range(3)]
    for thread in others:
        thread.start()
    while len(shared._waiting) < 4:
        time.sleep(0.001)
    clock.now += 59
    # Each of them looks again meanwhile.
    time.sleep(3 * request_gate._WAIT_INTERVAL)
    assert asked == [1000.0]
    clock.now = 1100.0
    for thread in (first, *others):
        thread.join()
    assert asked == [1000.0, *[1100.0] * 4]


@pytest.mark.parametrize("error", [OriginThrottled("slow down"), OriginTimedOut("silent")])
def test_failures_of_the_same_moment_halve_the_readers_once(error: OriginUnavailable) -> None:
    shared, together = made(), threading.Barrier(INITIAL_READERS)

    def work() -> None:
        with pytest.raises(type(error)), shared.permit(0):
            together.wait()
            raise error

    threads = [threading.Thread(target=work) for _ in range(INITIAL_READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.reader_limit == INITIAL_READERS // 2


def test_other_failures_change_nothing() -> None:
    shared = made()
    with pytest.raises(OriginUnavailable), shared.permit(0):
        raise OriginUnavailable("reset")
    assert shared.reader_limit == INITIAL_READERS


def test_no_more_ask_than_there_are_to_be_and_the_lowest_rank_is_first() -> None:
    shared = made()
    shared.limit_to_one_reader()
    order: list[int] = []

    def work(rank: int) -> None:
        with shared.permit(rank):
            order.append(rank)

    with shared.permit(0):
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
    shared.pause_all(100)
    with pytest.raises(FillStopped), shared.permit(0):
        pass
    assert shared._waiting == []


def test_pauses_grow_and_are_never_twice_the_same() -> None:
    pauses: list[float] = []
    errors = [OriginUnavailable("reset") for _ in range(3)]

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if errors:
            raise errors.pop()

    with RetryingReader(FakeOrigin(fault).open, made(pause=pauses.append)) as reader:
        assert len(read(reader)) == reader.fetched_bytes == 5
    assert [0.0005 * 2**n <= pause <= 0.001 * 2**n for n, pause in enumerate(pauses)] == [True, True, True]


def test_an_origin_that_cannot_give_ranges_is_read_by_one_reader_in_order(tmp_path: Path) -> None:
    known, asked = threading.Event(), []

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if offset and not known.is_set():
            known.set()
            raise RangesIgnored("all or nothing")
        if known.is_set():
            asked.append(offset)

    layout = build_layout(build_manifest([file("big", 400_000)], {}))
    fill(
        layout,
        tmp_path / "partial",
        tmp_path / "journal",
        FakeOrigin(fault).open,
        max_connections=4,
        chunk_bytes=4096,
    )
    # Those that were asking when it became known were not in order yet.
    later = asked[2 * INITIAL_READERS :]
    assert len(later) > 80
    assert later == sorted(later)


def test_an_origin_that_bears_few_at_once_is_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_gate, "_WAIT_INTERVAL", 0.01)
    busy, refused = threading.Semaphore(1), []

    def fault(entry: Entry, offset: int, buffer: memoryview) -> None:
        if not busy.acquire(blocking=False):
            refused.append(offset)
            raise OriginThrottled("one at a time")
        time.sleep(0.001)
        busy.release()

    layout = build_layout(build_manifest([file("big", 400_000)], {}))
    fill(
        layout,
        tmp_path / "partial",
        tmp_path / "journal",
        FakeOrigin(fault).open,
        max_connections=16,
        chunk_bytes=4096,
    )
    assert 0 < len(refused) <= 20
