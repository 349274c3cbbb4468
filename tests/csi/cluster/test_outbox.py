"""Writes that nobody waits for: the latest of each object, bounded, and what a server that is away does to
them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from csi.cluster.outbox import Outbox
from csi.errors import ClusterConflict, ClusterForbids, ClusterUnavailable, DataCacheError
from tests.origins.onc_rpc import wait_until


class Writes:
    """Makes writes that are noted, the first of them held back until `go`."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.go, self.under_way = threading.Event(), threading.Event()

    def write(self, name: str, error: Exception | None = None) -> Callable[[], None]:
        def write() -> None:
            self.under_way.set()
            assert self.go.wait(20)
            self.made.append(name)
            if error:
                raise error

        return write


@pytest.fixture
def writes() -> Writes:
    return Writes()


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    box = Outbox(max_waiting=20, write_interval=0.0)
    yield box
    box.close()


def test_of_what_waits_the_latest_of_each_object_is_written_in_their_order_and_no_more_than_so_many(
    outbox: Outbox, writes: Writes
) -> None:
    outbox.put("first", writes.write("first"))
    assert writes.under_way.wait(20)
    for number in range(10):
        for key in range(50):
            outbox.put(key, writes.write(f"{key} {number}"))
    writes.go.set()
    assert wait_until(lambda: len(writes.made) == 21, 20)
    assert writes.made == ["first", *(f"{key} 9" for key in range(20))]


def test_what_is_to_last_waits_however_many_there_are(outbox: Outbox, writes: Writes) -> None:
    outbox.put("first", writes.write("first"))
    assert writes.under_way.wait(20)
    for key in range(500):
        outbox.put(key, writes.write(str(key)), durable=True)
    outbox.put("more", writes.write("more"))
    writes.go.set()
    assert wait_until(lambda: len(writes.made) == 501, 20)
    assert writes.made == ["first", *map(str, range(500))]


def test_what_the_server_could_not_take_is_dropped_unless_it_is_to_last(
    outbox: Outbox, writes: Writes
) -> None:
    tries: list[str] = []

    def failing(name: str) -> Callable[[], None]:
        def write() -> None:
            tries.append(name)
            if len(tries) <= 2:
                raise ClusterUnavailable("away")

        return write

    outbox.put("dropped", failing("dropped"))
    outbox.put("lasting", failing("lasting"), durable=True)
    assert wait_until(lambda: len(tries) == 3, 20)
    assert tries == ["dropped", "lasting", "lasting"]


def test_a_conflict_is_tried_again_for_what_is_to_last_but_never_in_the_place_of_something_newer(
    outbox: Outbox, writes: Writes
) -> None:
    writes.go.set()
    tried: list[str] = []

    def conflicting() -> None:
        tried.append("old")
        outbox.put("status", lambda: tried.append("new"), durable=True)
        raise ClusterConflict("changed meanwhile")

    outbox.put("status", conflicting, durable=True)
    assert wait_until(lambda: tried == ["old", "new"], 20)
    outbox.put("after", writes.write("after"))
    assert wait_until(lambda: writes.made == ["after"], 20)
    assert tried == ["old", "new"]


@pytest.mark.parametrize(
    "error", [ClusterForbids("no right"), DataCacheError("odd"), ValueError("s3cr3t"), KeyError("s3cr3t")]
)
def test_what_fails_harms_nothing_else_and_is_said_once(
    outbox: Outbox, writes: Writes, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    writes.go.set()
    for number in range(5):
        outbox.put(number, writes.write(str(number), error if number < 4 else None))
    assert wait_until(lambda: len(writes.made) == 5, 20)
    assert len(caplog.records) == 1
    assert "s3cr3t" not in str(getattr(caplog.records[0], "fields", ""))


def test_closing_waits_for_the_write_under_way_and_drops_the_rest(outbox: Outbox, writes: Writes) -> None:
    outbox.put("first", writes.write("first"))
    assert writes.under_way.wait(20)
    outbox.put("second", writes.write("second"))
    threading.Timer(0.05, writes.go.set).start()
    outbox.close()
    outbox.put("third", writes.write("third"))
    assert writes.made == ["first"]
