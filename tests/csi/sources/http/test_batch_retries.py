"""Many files in one go, as a fill reads them: how often each is asked for, and what one that fails, stalls
or waits does to the others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi.errors import FillStopped, OriginUnavailable
from csi.images.fill import retrying_reader
from csi.images.fill.adaptive_concurrency import AdaptiveConcurrency
from csi.images.fill.request_gate import RequestGate
from csi.images.fill.retrying_reader import MAX_ATTEMPTS, RetryingReader
from csi.manifest.manifest import Entry, EntryKind
from csi.manifest.reader import PendingFiles
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from tests.csi.sources.http.origin import redirect
from tests.origins.scripted import Answer, Server

COUNT = 120
FILES = [Entry(f"{number}.bin", EntryKind.FILE, size=10) for number in range(COUNT)]
BODY = b"0123456789"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_reader, "MIN_RETRY_PAUSE", 0.001)
    monkeypatch.setattr(retrying_reader, "MAX_RETRY_PAUSE", 0.01)


def sends(answer: Answer) -> None:
    answer.say(206, BODY, Content_Range="bytes 0-9/10")


class Fill:
    """A fill's readers of one scripted origin: `flow` lets four ask at once."""

    def __init__(self, server: Server, pool: Connections) -> None:
        self.server, self.stopped = server, threading.Event()
        for entry in FILES:
            server.behave[f"/{entry.path}"] = sends
        self.flow = RequestGate(AdaptiveConcurrency(4, 1 << 22), self._pause)
        self._addresses, self._pool = FileUrls(lambda entry: f"{server.url}/{entry.path}"), pool

    def _pause(self, seconds: float) -> None:
        if self.stopped.wait(seconds) if seconds else self.stopped.is_set():
            raise FillStopped("stop")

    def reader(self, rank: int = 0) -> RetryingReader:
        reader = RetryingReader(lambda: RangeReader(self._pool, self._addresses), self.flow)
        reader.rank = rank
        return reader

    def read(self, rank: int = 0, files: list[Entry] = FILES) -> PendingFiles:
        wanted = [(entry, memoryview(bytearray(entry.size))) for entry in files]
        with self.reader(rank) as reader:
            reader.read_many(wanted)
            assert reader.fetched_bytes == sum(entry.size for entry in files)
        return wanted

    def asked(self) -> Counter[str]:
        return Counter(path for path, _, _ in self.server.seen)


@pytest.fixture
def fill(server: Server, pool: Connections) -> Fill:
    return Fill(server, pool)


def test_all_come_each_asked_for_once(fill: Fill) -> None:
    assert all(bytes(buffer) == BODY for _, buffer in fill.read())
    assert set(fill.asked().values()) == {1}
    assert fill.server.accepted <= 4


@pytest.mark.parametrize("position", [0, 70])
@pytest.mark.parametrize(
    ("fault", "most"),
    [(lambda answer: answer.say(500), 1), (lambda answer: answer.connection.shutdown(2), 2)],
    ids=["500", "cut"],
)
def test_a_file_that_always_fails_is_asked_for_as_often_as_one_alone(
    fill: Fill, position: int, fault: Callable[[Answer], None], most: int
) -> None:
    """A kept connection that ends without a byte is replaced: that is a second request of the same try."""
    fill.server.behave[f"/{position}.bin"] = fault
    with pytest.raises(OriginUnavailable, match=f"'{position}.bin'"):
        fill.read()
    asked = fill.asked()
    assert asked.pop(f"/{position}.bin") <= most * MAX_ATTEMPTS
    assert set(asked.values()) == {1}


def test_where_all_fail_no_file_is_asked_for_more_often_than_alone(fill: Fill) -> None:
    for entry in FILES:
        fill.server.behave[f"/{entry.path}"] = redirect(f"/{entry.path}")
    with pytest.raises(OriginUnavailable, match="more than 5 redirects"):
        fill.read()
    assert max(fill.asked().values()) <= 6 * MAX_ATTEMPTS
    assert sum(fill.asked().values()) <= 6 * (MAX_ATTEMPTS + 4)


def test_every_file_may_fail_now_and_then(fill: Fill) -> None:
    tries: Counter[str] = Counter()

    def now_and_then(answer: Answer) -> None:
        tries[answer.path] += 1
        answer.say(500) if tries[answer.path] < 3 and int(answer.path[1:-4]) % 7 == 0 else sends(answer)

    for entry in FILES:
        fill.server.behave[f"/{entry.path}"] = now_and_then
    assert all(bytes(buffer) == BODY for _, buffer in fill.read())
    assert all(count == (3 if int(path[1:-4]) % 7 == 0 else 1) for path, count in tries.items())


def test_a_stop_ends_it_with_what_is_under_way(fill: Fill) -> None:
    def slowly(answer: Answer) -> None:
        if len(fill.server.seen) == 10:
            fill.stopped.set()
        sends(answer)

    for entry in FILES:
        fill.server.behave[f"/{entry.path}"] = slowly
    with pytest.raises(FillStopped):
        fill.read()
    assert len(fill.server.seen) <= 10 + 4


def test_while_the_origin_asks_for_patience_nothing_more_is_asked_for(fill: Fill) -> None:
    def holds(answer: Answer) -> None:
        if len(fill.server.seen) == 10:
            fill.flow.pause_all(600)
            held.append(len(fill.server.seen))
            over.start()
        sends(answer)

    def end() -> None:
        held.append(len(fill.server.seen))
        fill.flow._paused_until = float("-inf")

    held: list[int] = []
    # Long enough for many more, were they asked for.
    over = threading.Timer(0.5, end)
    for entry in FILES:
        fill.server.behave[f"/{entry.path}"] = holds
    fill.read()
    over.join()
    assert len(fill.server.seen) == COUNT
    # Those that were under way already may still come.
    assert held[1] - held[0] <= 4


def test_one_that_stalls_holds_up_nobody_but_itself(fill: Fill) -> None:
    ended = threading.Event()
    fill.server.behave["/7.bin"] = lambda answer: ended.wait(30) and sends(answer)
    later = [Entry(f"later-{number}.bin", EntryKind.FILE, size=10) for number in range(20)]
    for entry in later:
        fill.server.behave[f"/{entry.path}"] = sends
    with ThreadPoolExecutor(2) as threads:
        stalled = threads.submit(fill.read)
        try:
            with fill.reader(rank=1) as reader:
                for entry in later:
                    reader.read_into(entry, 0, memoryview(bytearray(entry.size)))
            assert not stalled.done()
        finally:
            ended.set()
        assert len(stalled.result(30)) == COUNT


def test_a_reader_of_a_large_file_gets_its_turn_before_the_many_have_come(fill: Fill) -> None:
    large = Entry("large.bin", EntryKind.FILE, size=10)
    fill.server.behave["/large.bin"] = sends
    busy = threading.Event()

    def slowly(answer: Answer) -> None:
        if len(fill.server.seen) >= 10:
            busy.set()
            time.sleep(0.02)
        sends(answer)

    for entry in FILES:
        fill.server.behave[f"/{entry.path}"] = slowly
    with ThreadPoolExecutor(1) as threads:
        many = threads.submit(fill.read)
        assert busy.wait(30)
        with fill.reader(rank=1) as reader:
            reader.read_into(large, 0, memoryview(bytearray(10)))
        before = [path for path, _, _ in fill.server.seen].index("/large.bin")
        many.result(60)
    assert before < COUNT - 10
