"""Many small files asked for in one go: how many at a time, and what is left when it goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from csi.errors import (
    DataCacheError,
    FillStopped,
    OriginThrottled,
    OriginUnavailable,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
)
from csi.manifest.manifest import Entry, EntryKind
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from tests.csi.sources.http.origin import SECRET, redirect
from tests.origins.scripted import Answer, Server

COUNT = 40
FILES = [Entry(f"{number}.bin", EntryKind.FILE, size=number + 1) for number in range(COUNT)]
Wanted = list[tuple[Entry, memoryview]]
# Where 10.bin fails and four are asked for at once: ten before it, three beside it, three that were begun as
# those three came.
MOST_READ = 16


def content(entry: Entry) -> bytes:
    return bytes([entry.size]) * entry.size


def sends(entry: Entry) -> Callable[[Answer], None]:
    return lambda answer: answer.say(
        206, content(entry), Content_Range=f"bytes 0-{entry.size - 1}/{entry.size}"
    )


def says(status: int, **headers: str) -> Callable[[Answer], None]:
    return lambda answer: answer.say(status, **headers)


@pytest.fixture(autouse=True)
def files(server: Server) -> None:
    for entry in FILES:
        server.behave[f"/{entry.path}"] = sends(entry)


def first(server: Server, path: str, way: Callable[[Answer], None]) -> None:
    """The server answers no file behind `path` in the list before it answered that one."""
    answered = threading.Event()

    def tell(answer: Answer) -> None:
        way(answer)
        answered.set()

    def wait(entry: Entry) -> Callable[[Answer], None]:
        def answer(to: Answer) -> None:
            assert answered.wait(10)
            sends(entry)(to)

        return answer

    later = FILES[[entry.path for entry in FILES].index(path) + 1 :]
    server.behave |= {f"/{entry.path}": wait(entry) for entry in later}
    server.behave[f"/{path}"] = tell


def wanted() -> Wanted:
    return [(entry, memoryview(bytearray(entry.size))) for entry in FILES]


def of(server: Server, **more: bool) -> FileUrls:
    return FileUrls(lambda entry: f"{server.url}/{entry.path}", SECRET, **more)


class Turns:
    """So many at once; remembers what it was told."""

    def __init__(self, at_once: int) -> None:
        self.at_once, self.bytes, self.left = at_once, 0, [COUNT]

    def can_start(self, in_flight: int) -> bool:
        return in_flight < self.at_once

    def set_remaining(self, remaining: int) -> None:
        self.left.append(remaining)

    def on_bytes_received(self, count: int) -> None:
        self.bytes += count


def read(
    pool: Connections, addresses: FileUrls, files: Wanted, at_once: int = 4
) -> dict[str, OriginUnavailable]:
    """What was asked for in vain; what is left of `files` is unread, the others held their bytes."""
    left, turns = list(files), Turns(at_once)
    with RangeReader(pool, addresses) as reader:
        try:
            in_vain = reader.read_many(left, turns)
        finally:
            unread = {entry for entry, _ in left}
            done = [(entry, buffer) for entry, buffer in files if entry not in unread]
            assert all(buffer == content(entry) for entry, buffer in done)
            assert turns.bytes == sum(entry.size for entry, _ in done)
            files[:] = left
    assert in_vain or files or (turns.left[-1] == 0 and sorted(turns.left, reverse=True) == turns.left)
    return {entry.path: error for entry, error in in_vain.items()}


def names(files: Wanted) -> set[str]:
    return {entry.path for entry, _ in files}


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_are_asked_for_at_once_as_may_be_over_as_many_connections(
    server: Server, pool: Connections, at_once: int
) -> None:
    together, busy, most = threading.Barrier(at_once), threading.Semaphore(at_once), []

    def one_of(entry: Entry) -> Callable[[Answer], None]:
        def answer(to: Answer) -> None:
            most.append(busy.acquire(blocking=False))
            if entry.size <= at_once:
                together.wait(10)
            busy.release()
            sends(entry)(to)

        return answer

    for entry in FILES:
        server.behave[f"/{entry.path}"] = one_of(entry)
    for _ in range(3):
        assert read(pool, of(server), files := wanted(), at_once) == {}
        assert files == []
    assert all(most)
    assert server.accepted == at_once


def test_redirects_are_followed_and_the_credential_stays(
    server: Server, other: Server, pool: Connections
) -> None:
    for entry in FILES:
        server.behave[f"/{entry.path}"] = redirect(
            f"/hop/{entry.path}" if entry.size % 2 else f"{other.url}/{entry.path}"
        )
        server.behave[f"/hop/{entry.path}"] = other.behave[f"/{entry.path}"] = sends(entry)
    assert read(pool, of(server), files := wanted()) == {}
    assert files == []
    assert {given for _, given, _ in server.seen} == {"Bearer very-secret"}
    assert {given for _, given, _ in other.seen} == {None}


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [(503, {"Retry-After": "7"}, OriginThrottled), (500, {}, OriginUnavailable)],
)
def test_the_first_that_is_asked_for_in_vain_ends_it_and_what_was_under_way_is_kept(
    server: Server, pool: Connections, status: int, headers: dict[str, str], error: type[DataCacheError]
) -> None:
    first(server, "10.bin", says(status, **headers))
    in_vain = read(pool, of(server), files := wanted())
    assert list(in_vain) == ["10.bin"]
    assert isinstance(in_vain["10.bin"], error)
    assert "10.bin" in names(files)
    assert "0.bin" not in names(files)
    assert len(files) >= COUNT - MOST_READ
    assert len(server.seen) == COUNT - len(files) + 1


@pytest.mark.parametrize(
    ("status", "error"), [(404, SourceNotFound), (412, SourceChanged), (416, SourceChanged)]
)
def test_what_no_second_try_would_change_is_raised(
    server: Server, pool: Connections, status: int, error: type[DataCacheError]
) -> None:
    first(server, "10.bin", says(status))
    with pytest.raises(error, match="'10.bin'"):
        read(pool, of(server), wanted())
    assert len(server.seen) <= MOST_READ + 1


def test_an_answer_that_breaks_off_was_asked_for_in_vain(server: Server, pool: Connections) -> None:
    def cut(answer: Answer) -> None:
        answer.say(206, b"1", Content_Range="bytes 0-10/11", Content_Length="11")
        answer.close_connection = True

    server.behave["/10.bin"] = cut
    in_vain = read(pool, of(server), files := wanted())
    assert "ended early" in str(in_vain["10.bin"])
    assert 0 < len(files) < COUNT


def test_a_site_that_allows_no_more_is_not_asked_in_vain(server: Server, pool: Connections) -> None:
    entry = FILES[5]
    server.behave["/5.bin"] = lambda answer: answer.say(
        206, content(entry), Content_Range="bytes 0-5/6", RateLimit='"default";r=0;t=60'
    )
    in_vain = read(pool, of(server), files := wanted(), at_once=1)
    assert isinstance(in_vain["6.bin"], OriginThrottled)
    assert len(server.seen) == 6
    assert len(files) == COUNT - 6


def test_a_signed_address_that_ended_is_asked_for_anew_once(server: Server, pool: Connections) -> None:
    ways = iter([says(403), sends(FILES[10])])
    server.behave["/10.bin"] = lambda answer: next(ways)(answer)
    assert read(pool, of(server, is_signed=True), files := wanted()) == {}
    assert files == []
    server.behave["/10.bin"] = says(403)
    server.seen.clear()
    with pytest.raises(PermissionDenied, match="'10.bin'"):
        read(pool, of(server, is_signed=True), wanted())
    assert [path for path, _, _ in server.seen].count("/10.bin") == 2


def test_a_redirect_that_was_found_is_not_asked_for_again(
    server: Server, other: Server, pool: Connections
) -> None:
    """Where a host that the files are redirected to fails, the way there is known for those that were not
    asked for yet."""
    for entry in FILES:
        server.behave[f"/{entry.path}"] = redirect(f"{other.url}/{entry.path}")
        other.behave[f"/{entry.path}"] = sends(entry)
    other.behave["/10.bin"] = says(500)
    addresses, files = of(server), wanted()
    while "10.bin" not in (in_vain := read(pool, addresses, files)):
        assert in_vain == {}
    other.behave["/10.bin"] = sends(FILES[10])
    while files:
        assert read(pool, addresses, files) == {}
    assert COUNT <= len(server.seen) <= COUNT + 1


def test_a_redirect_loop_ends_after_as_many_requests_as_for_one_file(
    server: Server, pool: Connections
) -> None:
    server.behave["/10.bin"] = redirect("/10.bin")
    in_vain = read(pool, of(server), wanted())
    assert "more than 5 redirects" in str(in_vain["10.bin"])
    assert [path for path, _, _ in server.seen].count("/10.bin") == 6


def test_a_file_of_another_length_is_left_and_the_others_are_read(server: Server, pool: Connections) -> None:
    server.behave["/10.bin"] = lambda answer: answer.say(206, b"1", Content_Range="bytes 0-0/11")
    assert read(pool, of(server), files := wanted()) == {}
    assert names(files) == {"10.bin"}


def test_a_file_whose_address_curl_would_change_is_left_and_the_others_are_read(
    server: Server, pool: Connections
) -> None:
    addresses = FileUrls(
        lambda entry: f"{server.url}/{'a@b' if entry.path == '10.bin' else entry.path}", SECRET
    )
    assert read(pool, addresses, files := wanted()) == {}
    assert names(files) == {"10.bin"}


def test_a_change_seen_in_the_headers_is_told(server: Server, pool: Connections) -> None:
    addresses = FileUrls(
        lambda entry: f"{server.url}/{entry.path}", is_unchanged=lambda entry, headers: entry.path != "10.bin"
    )
    with pytest.raises(SourceChanged, match="'10.bin'"):
        read(pool, addresses, wanted())


def test_a_long_refusal_costs_no_connection(server: Server, pool: Connections) -> None:
    for entry in FILES:
        server.behave[f"/{entry.path}"] = lambda answer: answer.say(
            302, bytes(20_000), Location="/there" + answer.path
        )
        server.behave[f"/there/{entry.path}"] = sends(entry)
    assert read(pool, of(server), files := wanted(), at_once=1) == {}
    assert files == []
    assert server.accepted == 1


def test_behind_a_proxy_files_are_left_to_be_asked_for_alone(
    server: Server, pool: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    assert read(pool, FileUrls(lambda entry: f"http://192.0.2.1/{entry.path}"), files := wanted()) == {}
    assert len(files) == COUNT
    assert server.seen == []


def test_where_nobody_listens_all_are_left(server: Server, pool: Connections) -> None:
    server.shutdown()
    server.server_close()
    assert read(pool, of(server), files := wanted()) == {}
    assert len(files) == COUNT


def test_what_ends_the_fill_ends_it_at_once(server: Server, pool: Connections) -> None:
    class Stopping(Turns):
        def can_start(self, under_way: int) -> bool:
            if len(server.seen) >= 10:
                raise FillStopped("stop")
            return super().can_start(under_way)

    with RangeReader(pool, of(server)) as reader, pytest.raises(FillStopped):
        reader.read_many(wanted(), Stopping(4))
    assert len(server.seen) <= 14
    assert read(pool, of(server), files := wanted()) == {}
    assert files == []
