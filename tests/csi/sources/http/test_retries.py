"""What goes wrong on the way to an origin, before it can answer: tried again, but not where that cannot
help."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.errors import OriginUnavailable, OriginUntrusted
from csi.images.fill import retrying_reader
from csi.images.fill.adaptive_concurrency import AdaptiveConcurrency
from csi.images.fill.request_gate import RequestGate
from csi.images.fill.retrying_reader import MAX_ATTEMPTS, RetryingReader
from csi.manifest.manifest import Entry, EntryKind
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from tests.origins.scripted import Answer, Server

FILE = Entry("file", EntryKind.FILE, size=4)


def whole(answer: Answer) -> None:
    answer.say(206, b"data", Content_Range="bytes 0-3/4")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_reader, "MIN_RETRY_PAUSE", 0.001)
    monkeypatch.setattr(retrying_reader, "MAX_RETRY_PAUSE", 0.01)


@pytest.fixture
def trusting(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert")))


def read(url: str) -> bytes:
    pool, addresses, buffer = Connections(1), FileUrls(lambda entry: url), bytearray(4)
    flow = RequestGate(AdaptiveConcurrency(4, 4096), time.sleep)
    try:
        with RetryingReader(lambda: RangeReader(pool, addresses), flow) as reader:
            reader.read_into(FILE, 0, memoryview(buffer))
    finally:
        pool.close()
    return bytes(buffer)


@pytest.mark.parametrize("times", [MAX_ATTEMPTS - 1, MAX_ATTEMPTS])
def test_a_resolver_that_fails_for_a_moment_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    asked, real = [], socket.getaddrinfo

    def resolve(host: str, *more: object, **options: object) -> object:
        if host != "origin.test":
            return real(host, *more, **options)  # type: ignore[arg-type]
        asked.append(host)
        if len(asked) <= times:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real("127.0.0.1", *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with Server() as server:
        server.behave["/file"] = whole
        url = f"http://origin.test:{server.server_address[1]}/file"
        if times < MAX_ATTEMPTS:
            assert read(url) == b"data"
        else:
            with pytest.raises(OriginUnavailable, match="name cannot be resolved"):
                read(url)
        server.shutdown()
    assert len(asked) == MAX_ATTEMPTS


class Cutting:
    """Passes connections on to `port`, but the first `times`, which it cuts when it was said hello to."""

    def __init__(self, port: int, times: int) -> None:
        self._to, self._times, self.accepted = port, times, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            if self.accepted <= self._times:
                client.recv(100)
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._to))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=_pass, args=(one, other), daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _pass(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        other.close()


@pytest.fixture
def secure(certificate: Path) -> Iterator[Server]:
    with Server(tls=certificate) as server:
        server.behave["/file"] = whole
        yield server
        server.shutdown()


@pytest.mark.parametrize("times", [3, 1000])
def test_a_handshake_that_is_cut_is_begun_again(secure: Server, trusting: None, times: int) -> None:
    cutting = Cutting(secure.server_address[1], times)
    url = f"https://127.0.0.1:{cutting.port}/file"
    if times == 3:
        assert read(url) == b"data"
    else:
        with pytest.raises(OriginUnavailable):
            read(url)
    cutting.close()
    assert cutting.accepted == (times + 1 if times == 3 else MAX_ATTEMPTS)


def test_a_certificate_that_is_not_trusted_is_looked_at_once(
    secure: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    counting = Cutting(secure.server_address[1], 0)
    with pytest.raises(OriginUntrusted, match="REQUESTS_CA_BUNDLE"):
        read(f"https://127.0.0.1:{counting.port}/file")
    counting.close()
    assert counting.accepted == 1
