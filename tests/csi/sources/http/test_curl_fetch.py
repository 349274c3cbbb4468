"""Small files come whole over kept connections, by the same rules as streams."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from csi.destinations.destinations import Destinations
from csi.errors import (
    DataCacheError,
    OriginThrottled,
    OriginUnavailable,
    OriginUntrusted,
    PermissionDenied,
    SourceChanged,
)
from csi.manifest.manifest import Entry, EntryKind
from csi.sources.http.connections import Connections
from csi.sources.http.curl_fetch import MAX_BODY_BYTES, CurlClient, CurlRequest, CurlTimeouts
from csi.sources.http.environment import find_proxy
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from csi.sources.http.sites import parse_site
from csi.sources.http.throughput import MIN_RATE
from tests.csi.sources.http.origin import at, redirect
from tests.csi.sources.http.test_batch_fetch import Turns
from tests.origins.scripted import Answer, Server

SMALL = Entry("small.bin", EntryKind.FILE, size=5)
HURRIED = CurlTimeouts(connect=1, stall=1, idle=30, min_rate=1000)


def five(answer: Answer) -> None:
    answer.say(206, b"12345", Content_Range="bytes 0-4/5")


@pytest.fixture(autouse=True, params=["alone", "with others"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is run for files that are asked for alone and for those that are asked for in one go with
    others."""
    monkeypatch.setitem(_ASKED, "how", request.param)


_ASKED = {"how": "alone"}


def read(connections: Connections, addresses: FileUrls, entry: Entry = SMALL) -> bytes:
    buffer = bytearray(entry.size)
    wanted = [(entry, memoryview(buffer))]
    if _ASKED["how"] == "with others" and entry.size <= MAX_BODY_BYTES:
        with RangeReader(connections, addresses) as reader:
            for error in reader.read_many(wanted, Turns(4)).values():
                raise error
    return bytes(buffer) if not wanted else read_alone(connections, addresses, entry)


def read_alone(connections: Connections, addresses: FileUrls, entry: Entry = SMALL) -> bytes:
    buffer = bytearray(entry.size)
    with RangeReader(connections, addresses) as reader:
        reader.read_into(entry, 0, memoryview(buffer))
    return bytes(buffer)


def answers(hurried: CurlTimeouts = HURRIED) -> CurlClient:
    return CurlClient(2, lambda host, port, address: None, "", hurried)


def test_many_small_files_come_over_one_connection(server: Server, pool: Connections) -> None:
    for number in range(100):
        server.behave[f"/{number}"] = five
        assert read(pool, at(f"{server.url}/{number}")) == b"12345"
    assert server.accepted == 1
    assert {asked for _, _, asked in server.seen} == {"bytes=0-4"}


def test_a_kept_connection_that_the_origin_closed_costs_no_failure(server: Server, pool: Connections) -> None:
    def last(answer: Answer) -> None:
        five(answer)
        answer.close_connection = True

    server.behave["/small"] = last
    assert [read(pool, at(f"{server.url}/small")) for _ in range(5)] == [b"12345"] * 5
    assert len(server.seen) == 5


def test_a_credential_is_not_sent_on_to_another_host(
    server: Server, other: Server, pool: Connections
) -> None:
    server.behave["/small"] = redirect(f"{other.url}/signed")
    other.behave["/signed"] = five
    assert read(pool, at(f"{server.url}/small")) == b"12345"
    assert [given for _, given, _ in (*server.seen, *other.seen)] == ["Bearer very-secret", None]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_that_may_not_be_asked_is_not_connected_to(server: Server, host: str) -> None:
    server.behave["/small"] = five
    connections = Connections(2, Destinations(trusted=False))
    with pytest.raises(PermissionDenied, match="--allow-origins"):
        read(connections, at(f"http://{host}:{server.server_address[1]}/small"))
    assert server.accepted == 0


def test_a_redirect_to_where_requests_may_not_go_is_refused(server: Server, other: Server) -> None:
    server.behave["/small"] = redirect(f"{other.url}/signed")
    connections = Connections(2, Destinations(("127.0.0.1",), trusted=False))
    with pytest.raises(PermissionDenied, match=r"127\.0\.0\.2"):
        read(connections, at(f"{server.url}/small"))
    assert len(server.seen) <= 2
    assert other.accepted == 0


def test_a_connection_made_for_one_reach_is_not_used_for_another(server: Server) -> None:
    server.behave["/small"] = five
    connections = Connections(2)
    assert read(connections, at(f"{server.url}/small")) == b"12345"
    # Redirected to from a public origin, the same address may not be asked.
    with pytest.raises(PermissionDenied):
        connections.get_with_curl(f"{server.url}/small", {}, ("http", "192.0.2.1", 80), 5) or connections.get(
            f"{server.url}/small", {}, ("http", "192.0.2.1", 80)
        )
    assert server.accepted == 1


def test_a_file_that_goes_on_where_it_should_end_has_changed(server: Server, pool: Connections) -> None:
    def longer(answer: Answer) -> None:
        answer.protocol_version = "HTTP/1.0"
        answer.send_response(200)
        answer.send_header("Connection", "close")
        answer.end_headers()
        answer.wfile.write(b"1234567890" * 1000)

    server.behave["/small"] = longer
    with pytest.raises(SourceChanged, match="more than 5 bytes"):
        read(pool, at(f"{server.url}/small"))


def test_a_body_that_ends_early_is_a_passing_fault(server: Server, pool: Connections) -> None:
    def cut(answer: Answer) -> None:
        answer.say(206, b"12", Content_Range="bytes 0-4/5", Content_Length="5")
        answer.close_connection = True

    server.behave["/small"] = cut
    with pytest.raises(OriginUnavailable, match="ended early.*'small.bin'"):
        read(pool, at(f"{server.url}/small"))
    assert len(server.seen) == 1


def test_an_answer_that_stalls_or_trickles_is_cut(server: Server) -> None:
    ended = threading.Event()

    def trickle(answer: Answer) -> None:
        answer.send_response(206)
        answer.end_headers()
        while not ended.wait(0.2):
            answer.wfile.write(b"1")

    server.behave["/stalls"], server.behave["/trickles"] = lambda answer: ended.wait(30), trickle
    try:
        for path in ("/stalls", "/trickles"):
            with pytest.raises(TimeoutError):
                answers().get(CurlRequest(f"{server.url}{path}", "127.0.0.1", {}, 1000))
    finally:
        ended.set()


def test_nothing_of_the_users_own_is_read(
    server: Server, pool: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        (".netrc", "machine 127.0.0.1 login me password mine\n"),
        (".curlrc", 'proxy = "127.0.0.1:1"\n'),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    server.behave["/small"] = five
    assert read(pool, FileUrls(lambda entry: f"{server.url}/small")) == b"12345"
    assert [given for _, given, _ in server.seen] == [None]


def test_a_proxy_of_the_environment_is_used(
    server: Server, pool: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.behave["http://192.0.2.1/small"] = five
    assert read(pool, at("http://192.0.2.1/small")) == b"12345"


def test_a_token_with_a_line_end_adds_no_header(server: Server, pool: Connections) -> None:
    server.behave["/small"] = five
    with pytest.raises(DataCacheError) as error:
        read(pool, FileUrls(lambda entry: f"{server.url}/small", {"Authorization": "Bearer a\r\nX-Other: b"}))
    assert "Bearer" not in str(error.value)
    assert server.seen == []


def test_one_that_is_slow_to_connect_to_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port, waiting = full.getsockname()[1], []
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("127.0.0.1", port))
        time.sleep(0.1)
        with pytest.raises(TimeoutError):
            answers().get(CurlRequest(f"http://127.0.0.1:{port}/", "127.0.0.1", {}, 5))
        for one in waiting:
            one.close()


def test_what_is_larger_comes_as_a_stream(server: Server, pool: Connections) -> None:
    data = bytes(MAX_BODY_BYTES + 1)
    server.behave["/large"] = lambda answer: answer.say(
        206, data, Content_Range=f"bytes 0-{MAX_BODY_BYTES}/{MAX_BODY_BYTES + 1}"
    )
    assert (
        read(pool, at(f"{server.url}/large"), Entry("large.bin", EntryKind.FILE, size=MAX_BODY_BYTES + 1))
        == data
    )
    assert not pool._curl_clients


def test_a_site_is_told_by_what_stands_before_the_path() -> None:
    assert parse_site("https://h/a/b?c") == parse_site("https://H") == ("https", "h", 443)
    assert parse_site("http://h:81?x=/y") == ("http", "h", 81)
    assert parse_site("http://user:pw@h/") == ("http", "h", 80)


def test_small_files_of_a_site_with_tls_come_over_one_connection_once_it_is_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, pool: Connections
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert")))
    with Server(tls=certificate) as server:
        server.behave["/small"] = five
        connections = Connections(2)
        assert [read(connections, at(f"{server.url}/small")) for _ in range(20)] == [b"12345"] * 20
        connections.close()
        server.shutdown()
    assert server.accepted == 2


def test_a_certificate_that_names_its_host_in_the_subject_alone_gets_no_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout key -out cert"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "cert").read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert"))
    with Server(tls=both) as server:
        server.behave["/small"] = five
        with pytest.raises(OriginUntrusted):
            read(Connections(2), at(f"{server.url}/small"))
        server.shutdown()
    assert server.seen == []


def test_what_came_at_once_does_not_count_for_what_connections_usually_give(
    server: Server, pool: Connections
) -> None:
    data = bytes(MAX_BODY_BYTES)
    server.behave["/small"] = lambda answer: answer.say(
        206, data, Content_Range=f"bytes 0-{MAX_BODY_BYTES - 1}/{MAX_BODY_BYTES}"
    )
    for _ in range(5):
        read(pool, at(f"{server.url}/small"), Entry("small.bin", EntryKind.FILE, size=MAX_BODY_BYTES))
    assert pool.baseline.min_rate == MIN_RATE


@pytest.mark.parametrize("status", [0, 500, 503])
def test_where_a_redirect_led_to_is_forgotten_when_it_is_dead_but_not_when_it_asks_for_patience(
    server: Server, pool: Connections, status: int
) -> None:
    """A status of 0: nothing answers there."""
    with Server("127.0.0.2") as first, Server("127.0.0.2") as second:
        first.behave["/x"] = second.behave["/x"] = five
        addresses = at(f"{server.url}/small")
        server.behave["/small"] = redirect(f"{first.url}/x")
        assert read_alone(pool, addresses) == b"12345"
        server.behave["/small"] = redirect(f"{second.url}/x")
        if status:
            first.behave["/x"] = lambda answer: answer.say(status)
        else:
            pool.close()
            first.shutdown()
            first.server_close()
        with pytest.raises(OriginUnavailable):
            read_alone(pool, addresses)
        asked = len(server.seen)
        if status == 503:
            with pytest.raises(OriginThrottled):
                read_alone(pool, addresses)
        else:
            assert read_alone(pool, addresses) == b"12345"
        assert len(server.seen) == asked + (status != 503)
        for running in (first, second) if status else (second,):
            running.shutdown()


@pytest.mark.parametrize(
    ("no_proxy", "proxied"),
    [("10.0.0.0/8, 192.0.2.0/24", False), ("10.0.0.0/8", True), ("fd00::/8,192.0.2.1", False)],
)
def test_networks_in_no_proxy_are_asked_without_one(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, proxied: bool
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert bool(find_proxy("http://192.0.2.1:8080/x")) == proxied
    assert find_proxy("http://origin.invalid/")
