"""Connections that fall silent, trickle, or take ever for the head of an answer: given up, so that others
take their place."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from csi.errors import (
    OriginTimedOut,
    OriginUnavailable,
)
from csi.sources.http import connections, header_timeouts, throughput
from csi.sources.http.connections import Connections
from csi.sources.http.range_reader import RangeReader
from tests.csi.sources.http.origin import DATA, FILE, at, ranged, read, whole
from tests.origins.scripted import Answer, Server


def test_a_server_that_falls_silent_is_given_up(
    server: Server, pool: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "READ_TIMEOUT", 0.3)
    go = threading.Event()

    def silent(answer: Answer) -> None:
        start, end = answer.span()
        answer.say(
            206,
            DATA[start : start + 10],
            Content_Length=str(end - start),
            Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}",
        )
        go.wait(20)

    server.behave["/file"] = silent
    with (
        RangeReader(pool, at(f"{server.url}/file")) as reader,
        pytest.raises(OriginTimedOut, match="no answer"),
    ):
        read(reader, 0, 1000)
    go.set()


def dripping(server: Server, pause: float, then: object = ranged, chunks: bool = False) -> object:
    """The first answer comes byte by byte, one each `pause` seconds; the next ones are `then`."""

    def drip(answer: Answer) -> None:
        start, end = answer.span()
        server.behave["/file"] = then
        answer.send_response(206)
        answer.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
        answer.send_header(
            *("Transfer-Encoding", "chunked") if chunks else ("Content-Length", str(end - start))
        )
        answer.end_headers()
        for place in range(start, end):
            one = DATA[place : place + 1]
            answer.wfile.write(b"1\r\n%s\r\n" % one if chunks else one)
            time.sleep(pause)

    return drip


@pytest.mark.parametrize("chunks", [False, True])
def test_a_connection_that_trickles_is_given_up(
    server: Server, pool: Connections, monkeypatch: pytest.MonkeyPatch, chunks: bool
) -> None:
    monkeypatch.setattr(throughput, "MEASURING_WINDOW", 0.3)
    server.behave["/file"] = dripping(server, 0.02, chunks=chunks)
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        with pytest.raises(OriginUnavailable, match="far slower than others"):
            read(reader, 0, 5000)
        assert read(reader, 0, 5000) == DATA[:5000]


@pytest.mark.parametrize("secure", [False, True])
def test_a_head_that_comes_byte_by_byte_is_given_up(
    server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert")))
    monkeypatch.setattr(header_timeouts, "_CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(connections, "HEADER_READ_TIMEOUTS", 0.01)
    ended = threading.Event()

    def drip(answer: Answer) -> None:
        try:
            for byte in b"HTTP/1.1 200 OK" + b" " * 10_000:
                answer.wfile.write(bytes([byte]))
                time.sleep(0.01)
        except OSError:
            answer.close_connection = True
            ended.set()

    with Server(tls=certificate if secure else None) as slow:
        slow.behave["/file"] = drip
        with RangeReader(Connections(1), at(f"{slow.url}/file")) as reader:
            with pytest.raises(OriginTimedOut, match=FILE.path):
                read(reader, 0, 10)
            assert ended.wait(10)
            slow.behave["/file"] = ranged
            assert read(reader, 0, 10) == DATA[:10]
        assert slow.accepted == 2
        slow.shutdown()


def test_slow_is_what_is_far_slower_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "MEASURING_WINDOW", 10.0)
    usual = throughput.ThroughputBaseline()
    first, slow, fair = (
        throughput.ThroughputMeter(usual),
        throughput.ThroughputMeter(usual),
        throughput.ThroughputMeter(usual),
    )
    assert not first.is_too_slow(10_000_000, 10.0)
    assert slow.is_too_slow(400_000, 10.0)
    assert not fair.is_too_slow(1_000_000, 10.0)
    for _ in range(100):
        throughput.ThroughputMeter(usual).is_too_slow(400_000, 10.0)
    # Where all have become that slow, it is the usual.
    assert not throughput.ThroughputMeter(usual).is_too_slow(400_000, 10.0)


def test_time_that_nobody_reads_is_not_held_against_a_connection(
    monkeypatch: pytest.MonkeyPatch, server: Server, pool: Connections
) -> None:
    monkeypatch.setattr(throughput, "MEASURING_WINDOW", 0.1)
    server.behave["/file"] = whole
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        for start in range(0, 50, 10):
            assert read(reader, start, 10) == DATA[start : start + 10]
            time.sleep(0.1)
    assert len(server.seen) == 1
