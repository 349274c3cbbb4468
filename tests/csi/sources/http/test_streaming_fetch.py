"""Servers without ranges: one stream in the order of the file, passed on from reader to reader."""

from __future__ import annotations

import threading

import pytest

from csi.errors import OriginUnavailable, RangesIgnored, SourceChanged
from csi.sources.http import range_reader
from csi.sources.http.connections import Connections
from csi.sources.http.range_reader import RangeReader
from tests.csi.sources.http.origin import DATA, at, chunked, read, whole
from tests.origins.scripted import Answer, Server


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file counts as a large one."""
    monkeypatch.setattr(range_reader, "_MAX_REREAD_BYTES", 1000)


@pytest.mark.parametrize("behaviour", [whole, chunked])
def test_readers_of_a_server_without_ranges_pass_one_stream_on(
    server: Server, pool: Connections, large: None, behaviour: object
) -> None:
    server.behave["/file"] = behaviour
    addresses = at(f"{server.url}/file")
    with RangeReader(pool, addresses) as first:
        assert read(first, 0, 100) == DATA[:100]
        with RangeReader(pool, addresses) as second, pytest.raises(RangesIgnored, match="in order"):
            read(second, 100, 100)
        assert len(server.seen) == 2
        with RangeReader(pool, addresses) as third:
            # In order: each goes on where the other stopped, whoever has the stream.
            for start in range(100, len(DATA), 100_000):
                length = min(100_000, len(DATA) - start)
                assert (
                    read((first, third)[start // 100_000 % 2], start, length) == DATA[start : start + length]
                )
    assert len(server.seen) <= 3


def test_streams_that_are_passed_on_are_closed_with_the_last_reader(
    server: Server, pool: Connections, large: None
) -> None:
    ended = threading.Event()

    def endless(answer: Answer) -> None:
        try:
            whole(answer)
            while True:
                answer.wfile.write(bytes(100_000))
        except OSError:
            ended.set()

    server.behave["/file"] = endless
    addresses = at(f"{server.url}/file")
    with RangeReader(pool, addresses) as reader, pytest.raises(RangesIgnored):
        read(reader, 100, 100)
    assert ended.wait(10)


def test_a_whole_file_that_goes_on_where_it_should_end_has_changed(server: Server, pool: Connections) -> None:
    def longer(answer: Answer) -> None:
        answer.send_response(200)
        answer.end_headers()
        answer.wfile.write(DATA + b"more")
        answer.close_connection = True

    server.behave["/file"] = longer
    with (
        RangeReader(pool, at(f"{server.url}/file")) as reader,
        pytest.raises(SourceChanged, match=f"more than {len(DATA)} bytes"),
    ):
        read(reader, 0, len(DATA))


def cut_before_the_last_chunk(answer: Answer) -> None:
    """All bytes of the file, without the empty chunk that would say so."""
    answer.send_response(200)
    answer.send_header("Transfer-Encoding", "chunked")
    answer.end_headers()
    answer.wfile.write(b"%x\r\n%s\r\n" % (len(DATA), DATA))
    answer.close_connection = True


def test_a_whole_file_whose_end_does_not_arrive_is_unavailable_not_changed(
    server: Server, pool: Connections
) -> None:
    server.behave["/file"] = cut_before_the_last_chunk
    with (
        RangeReader(pool, at(f"{server.url}/file")) as reader,
        pytest.raises(OriginUnavailable, match="at the end of 'folder/file.bin'"),
    ):
        # Two reads, since a small file that is read at once goes another way.
        read(reader, 0, 1000)
        read(reader, 1000, len(DATA) - 1000)
    server.behave["/file"] = whole
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        assert read(reader, 0, len(DATA)) == DATA
