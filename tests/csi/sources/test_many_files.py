"""Many small files asked for in one go: how many at a time, and what is left when it goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from csi.errors import DataCacheError, OriginThrottled, OriginUnavailable, SourceChanged, SourceNotFound
from csi.sources.addresses import Addresses
from csi.sources.connections import Connections
from csi.sources.http import RangeReader
from csi.spec.manifest import Entry, Kind
from tests.csi.sources.http_origin import SECRET, redirect
from tests.origins.scripted import Answer, Server

COUNT = 40
FILES = [Entry(f"{number}.bin", Kind.FILE, size=number + 1) for number in range(COUNT)]
Wanted = list[tuple[Entry, memoryview]]


def content(entry: Entry) -> bytes:
    return bytes([entry.size]) * entry.size


def sends(entry: Entry) -> Callable[[Answer], None]:
    return lambda answer: answer.say(206, content(entry), Content_Range=f"bytes 0-{entry.size - 1}/{entry.size}")


def says(status: int, **headers: str) -> Callable[[Answer], None]:
    return lambda answer: answer.say(status, **headers)


@pytest.fixture(autouse=True)
def files(server: Server) -> None:
    for entry in FILES:
        server.behave[f"/{entry.path}"] = sends(entry)


def wanted() -> Wanted:
    return [(entry, memoryview(bytearray(entry.size))) for entry in FILES]


def of(server: Server, **more: bool) -> Addresses:
    return Addresses(lambda entry: f"{server.url}/{entry.path}", SECRET, **more)


def read(pool: Connections, addresses: Addresses, files: Wanted, at_once: int = 4) -> Wanted:
    """What was left of them; those that were read hold their bytes."""
    left = list(files)
    with RangeReader(pool, addresses) as reader:
        try:
            reader.read_many(left, at_once)
        finally:
            unread = {entry for entry, _ in left}
            assert all(buffer == content(entry) for entry, buffer in files if entry not in unread)
            files[:] = left
    return left


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_are_asked_for_at_once_as_may_be_over_as_many_connections(server: Server, pool: Connections, at_once: int) -> None:
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
        assert read(pool, of(server), wanted(), at_once) == []
    assert all(most) and server.accepted == at_once


def test_redirects_are_followed_and_the_credential_stays(server: Server, other: Server, pool: Connections) -> None:
    for entry in FILES:
        server.behave[f"/{entry.path}"] = redirect(f"/hop/{entry.path}" if entry.size % 2 else f"{other.url}/{entry.path}")
        server.behave[f"/hop/{entry.path}"] = other.behave[f"/{entry.path}"] = sends(entry)
    assert read(pool, of(server), wanted()) == []
    assert {given for _, given, _ in server.seen} == {"Bearer very-secret"} and {given for _, given, _ in other.seen} == {None}


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [(503, {"Retry-After": "7"}, OriginThrottled), (500, {}, OriginUnavailable), (404, {}, SourceNotFound), (412, {}, SourceChanged)],
)
def test_the_first_failure_ends_it_and_what_was_under_way_is_kept(
    server: Server, pool: Connections, status: int, headers: dict[str, str], error: type[DataCacheError]
) -> None:
    server.behave["/10.bin"] = says(status, **headers)
    files = wanted()
    with pytest.raises(error, match="'10.bin'"):
        read(pool, of(server), files)
    left = {entry.path for entry, _ in files}
    assert "10.bin" in left and "0.bin" not in left and len(left) > COUNT - 15
    assert len(server.seen) == COUNT - len(left) + 1


def test_an_answer_that_breaks_off_ends_it_too(server: Server, pool: Connections) -> None:
    def cut(answer: Answer) -> None:
        answer.say(206, b"1", Content_Range="bytes 0-10/11", Content_Length="11")
        answer.close_connection = True

    server.behave["/10.bin"] = cut
    files = wanted()
    with pytest.raises(OriginUnavailable, match="ended early.*'10.bin'"):
        read(pool, of(server), files)
    assert 0 < len(files) < COUNT


def test_a_site_that_allows_no_more_is_not_asked_in_vain(server: Server, pool: Connections) -> None:
    entry = FILES[5]
    server.behave["/5.bin"] = lambda answer: answer.say(206, content(entry), Content_Range="bytes 0-5/6", RateLimit='"default";r=0;t=60')
    files = wanted()
    with pytest.raises(OriginThrottled, match="allows no further request"):
        read(pool, of(server), files, at_once=1)
    assert len(server.seen) == 6 and len(files) == COUNT - 6


def test_a_signed_address_that_ended_is_left_to_be_asked_for_anew(server: Server, pool: Connections) -> None:
    server.behave["/10.bin"] = says(403)
    assert "10.bin" in {entry.path for entry, _ in read(pool, of(server, signs=True), wanted())}


def test_a_file_of_another_length_is_left_and_the_others_are_read(server: Server, pool: Connections) -> None:
    server.behave["/10.bin"] = lambda answer: answer.say(206, b"1", Content_Range="bytes 0-0/11")
    assert [entry.path for entry, _ in read(pool, of(server), wanted())] == ["10.bin"]


def test_a_change_seen_in_the_headers_is_told(server: Server, pool: Connections) -> None:
    addresses = Addresses(lambda entry: f"{server.url}/{entry.path}", unchanged=lambda entry, headers: entry.path != "10.bin")
    with pytest.raises(SourceChanged, match="'10.bin'"):
        read(pool, addresses, wanted())


def test_behind_a_proxy_files_are_left_to_be_asked_for_alone(server: Server, pool: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    assert len(read(pool, Addresses(lambda entry: f"http://192.0.2.1/{entry.path}"), wanted())) == COUNT
    assert server.seen == []


def test_where_nobody_listens_all_are_left(server: Server, pool: Connections) -> None:
    server.shutdown()
    server.server_close()
    assert len(read(pool, of(server), wanted())) == COUNT
