"""Listings go to the store that was named and nowhere else, are signed as it wants, and come whole or not
at all."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import subprocess
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from csi.destinations.destinations import Destinations
from csi.errors import OriginThrottled, OriginUnavailable, OriginUntrusted, PermissionDenied, UnsafeContent
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.buckets import BucketSpec
from csi.sources.buckets import listing
from csi.sources.buckets.object_store import AccessKey
from csi.sources.buckets.source import BucketSource
from tests.conformance.trees import read
from tests.csi.sources.buckets.origin import KEY, failing, list_bucket, told
from tests.origins import versitygw
from tests.origins.scripted import Answer, Server
from tests.origins.versitygw import READER_ID, READER_SECRET, ObjectServer

ODD = (
    "a b/x y",
    "a+b/c+d",
    "p%41/q%2Fr",
    "ü/ö~-_.x",
    "s=1&t/u?v#w",
    "(!*')/z",
    "back\\sl",
    "q\"<>&'",
    "@at/:col;semi,$",
    "{br}/[x]|^`",
    "日本/本",
)


@pytest.fixture
def unproxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_PAGE_RETRY_PAUSES", (0.0, 0.0))


def reader() -> AccessKey:
    return AccessKey(READER_ID, READER_SECRET)


def paths(subject: BucketSource) -> list[str]:
    with closing(subject):
        return [e.path for e in subject.resolve(subject.pin()).files]


@pytest.mark.parametrize("anonymous", [False, True])
def test_folders_of_any_name_are_listed_and_read(store: ObjectServer, anonymous: bool) -> None:
    bucket = store.bucket({f"{name}/file{name[:1]}": name.encode() for name in ODD}, anonymous=anonymous)
    for name in ODD:
        spec = CacheSpec(BucketSpec("S3", store.endpoint, bucket, name, path_style=True))
        with closing(BucketSource(spec, None if anonymous else reader)) as subject:
            manifest = subject.resolve(subject.pin())
            assert read(subject, manifest, f"file{name[:1]}") == name.encode()


def test_pages_of_a_real_server_follow_each_other_whatever_their_keys(store: ObjectServer) -> None:
    bucket = store.bucket({})
    folder = store.root / bucket / "a +%=&ü"
    folder.mkdir()
    for number in range(2100):
        (folder / f"{number} +%/=&ü".replace("/", "")).write_bytes(b"1")
    found = paths(BucketSource(CacheSpec(BucketSpec("S3", store.endpoint, bucket, path_style=True)), reader))
    assert len(found) == len(set(found)) == 2100


def test_a_bucket_in_the_host_name_is_listed_and_read_through_a_proxy(
    store: ObjectServer, unproxied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = store.bucket({"a b/ü+%.bin": b"content"})
    monkeypatch.setenv("http_proxy", store.endpoint)
    for spec in (
        BucketSpec("S3", f"http://{versitygw.DOMAIN}", bucket, "a b"),
        BucketSpec("S3", "http://other.example", bucket, "a b", path_style=True),
    ):
        with closing(BucketSource(CacheSpec(spec), reader)) as subject:
            assert read(subject, subject.resolve(subject.pin()), "ü+%.bin") == b"content"


def test_a_session_token_is_signed_too(server: Server) -> None:
    asked: list[Answer] = []

    def answer(handler: Answer) -> None:
        asked.append(handler)
        handler.say(200, list_bucket("file"))

    server.behave["/bucket"] = answer
    assert paths(told(server, lambda: KEY)) == ["file"]
    (handler,) = asked
    signed = handler.headers["Authorization"]
    assert signed.startswith("AWS4-HMAC-SHA256 Credential=keyid/")
    assert "/us-east-1/s3/aws4_request" in signed
    assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token," in signed
    assert handler.headers["x-amz-security-token"] == KEY.token


def test_a_signature_goes_with_the_listing_alone(server: Server) -> None:
    server.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("file"))
    server.behave["/bucket/file"] = lambda handler: handler.say(
        206, b"1", Content_Range="bytes 0-0/1", ETag='"e"'
    )
    with closing(told(server, lambda: KEY)) as subject:
        subject.check_read_access(subject.resolve(subject.pin()))
    assert [bool(given) for _, given, _ in server.seen] == [True, True, False]
    assert "X-Amz-Signature=" in server.seen[-1][0]


def test_a_token_comes_back_as_it_was(server: Server) -> None:
    token, asked = "a+b/c=%2F d&amp;ü==", list[dict[str, list[str]]]()

    def answer(handler: Answer) -> None:
        asked.append(parse_qs(urlsplit(handler.path).query))
        handler.say(
            200, list_bucket("two") if "continuation-token" in asked[-1] else list_bucket("one", more=token)
        )

    server.behave["/bucket"] = answer
    assert paths(told(server)) == ["one", "two"]
    same = {"list-type": ["2"], "encoding-type": ["url"], "max-keys": ["1000"]}
    assert asked == [same, same | {"continuation-token": [token.replace("&amp;", "&")]}]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_a_listing_is_refused_and_not_followed(
    server: Server, other: Server, status: int
) -> None:
    other.behave["/stolen"] = lambda handler: handler.say(200, list_bucket("stolen"))
    server.behave["/bucket"] = lambda handler: handler.say(
        status, Location=f"{other.url}/stolen", x_amz_bucket_region="eu-west-1"
    )
    for where in (Destinations(("127.0.0.1",), trusted=False), None):
        error = failing(told(server, lambda: KEY, where))
        assert isinstance(error, OriginUnavailable)
        assert "check endpoint and region" in str(error)
        assert "eu-west-1" in str(error)
    assert other.accepted == 0
    assert len(server.seen) == 2


def test_a_pods_bucket_is_asked_by_addresses_that_it_may_name(server: Server) -> None:
    server.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("file"))
    assert isinstance(failing(told(server, lambda: KEY, Destinations(trusted=False))), PermissionDenied)
    assert server.accepted == 0
    assert paths(told(server, lambda: KEY, Destinations(("127.0.0.1",), trusted=False))) == ["file"]


def test_a_name_below_a_listed_endpoint_is_no_listed_name(server: Server) -> None:
    server.behave["/"] = lambda handler: handler.say(200, list_bucket("file"))
    port = server.server_address[1]
    # Bucket and endpoint together spell 127.0.0.1.
    spec = CacheSpec(BucketSpec("S3", f"http://0.0.1:{port}", "127"))
    assert isinstance(
        failing(BucketSource(spec, None, Destinations((f"0.0.1:{port}",), trusted=False))), PermissionDenied
    )
    assert server.accepted == 0
    assert paths(BucketSource(spec, None, Destinations((f"*.0.0.1:{port}",), trusted=False))) == ["file"]


@pytest.mark.parametrize(
    "next_page", ["", "<NextMarker>b</NextMarker>", "<NextContinuationToken></NextContinuationToken>"]
)
def test_half_a_listing_is_none(server: Server, next_page: str) -> None:
    cut = list_bucket("a", "b").replace(
        b"<IsTruncated>false</IsTruncated>", f"<IsTruncated>true</IsTruncated>{next_page}".encode()
    )
    server.behave["/bucket"] = lambda handler: handler.say(200, cut)
    error = failing(told(server))
    assert isinstance(error, OriginUnavailable)
    assert "ends in the middle" in str(error)


def test_a_listing_that_turns_in_circles_ends(server: Server) -> None:
    turns = {"": "first", "first": "second", "second": "first"}

    def answer(handler: Answer) -> None:
        after = parse_qs(urlsplit(handler.path).query).get("continuation-token", [""])[0]
        handler.say(200, list_bucket(more=turns[after]))

    server.behave["/bucket"] = answer
    assert "repeats a page" in str(failing(told(server)))
    assert len(server.seen) == 3


def test_a_page_that_is_too_large_is_given_up(server: Server) -> None:
    server.behave["/bucket"] = lambda handler: handler.say(
        200, list_bucket("a").replace(b"<Contents>", b" " * (8 << 20) + b"<Contents>")
    )
    assert "over 8 MiB" in str(failing(told(server)))


def test_a_key_that_is_no_text_is_refused(server: Server) -> None:
    server.behave["/bucket"] = lambda handler: handler.say(
        200, list_bucket("%FF").replace(b"<Contents>", b"<EncodingType>url</EncodingType><Contents>")
    )
    assert isinstance(failing(told(server)), UnsafeContent)


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_asks_for_patience_gets_it(server: Server, status: int) -> None:
    server.behave["/bucket"] = lambda handler: handler.say(
        status, b"<Error><Code>SlowDown</Code></Error>", Retry_After="7"
    )
    error = failing(told(server))
    assert isinstance(error, OriginThrottled)
    assert error.retry_after == 7
    assert len(server.seen) == 1


def faulty_page(server: Server, status: int, faults: int, **headers: str) -> None:
    """The second page fails so many times."""
    failed = iter(range(faults))

    def answer(handler: Answer) -> None:
        if "continuation-token" not in handler.path:
            handler.say(200, list_bucket("one", more="t"))
        elif next(failed, None) is not None:
            handler.say(status, b"", **headers)
        else:
            handler.say(200, list_bucket("two"))

    server.behave["/bucket"] = answer


def test_a_page_in_the_middle_that_fails_in_passing_loses_nothing(server: Server, hasty: None) -> None:
    faulty_page(server, 500, 2)
    assert paths(told(server)) == ["one", "two"]
    faulty_page(server, 500, 3)
    assert isinstance(failing(told(server)), OriginUnavailable)


def test_a_page_in_the_middle_is_not_waited_for_long(server: Server, hasty: None) -> None:
    faulty_page(server, 503, 3, Retry_After="60")
    error = failing(told(server))
    assert isinstance(error, OriginThrottled)
    assert error.retry_after == 60
    assert len(server.seen) == 2


def test_a_certificate_is_trusted_from_a_file_or_a_folder_and_refused_in_words(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(tls=certificate) as secure:
        secure.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("file"))
        spec = CacheSpec(replace(told(secure)._bucket, endpoint=secure.url))
        error = failing(BucketSource(spec, lambda: KEY))
        assert isinstance(error, OriginUntrusted)
        assert "REQUESTS_CA_BUNDLE" in str(error)
        assert secure.seen == []
        # The name by which OpenSSL finds it.
        command = ["openssl", "x509", "-hash", "-noout", "-in", str(certificate)]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        (tmp_path / f"{name}.0").write_bytes(certificate.read_bytes())
        for bundle in (certificate, tmp_path):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
            assert paths(BucketSource(spec, lambda: KEY)) == ["file"]
        secure.shutdown()


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy's CONNECT, to `server.target` whatever is asked for.

    `server.asked` are the requests with their headers.
    """

    server: TunnelServer

    def handle(self) -> None:
        head = list(iter(lambda: self.rfile.readline().decode().strip(), ""))
        self.server.asked.append(head)
        with socket.create_connection(self.server.target) as there:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=self._pass, args=(there, self.connection))
            back.start()
            self._pass(self.connection, there)
            back.join()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class TunnelServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.target, self.asked = target, list[list[str]]()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


def test_a_store_with_tls_is_listed_and_read_through_a_proxy_that_never_sees_the_key(
    certificate: Path, unproxied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with Server(tls=certificate) as secure, TunnelServer(("127.0.0.1", secure.server_address[1])) as proxy:
        secure.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("file"))
        secure.behave["/bucket/file"] = lambda handler: handler.say(
            206, b"1", Content_Range="bytes 0-0/1", ETag='"e"'
        )
        monkeypatch.setenv("https_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.server_address[1]}")
        with closing(told(secure, lambda: KEY)) as subject:
            subject.check_read_access(subject.resolve(subject.pin()))
        login = f"proxy-authorization: basic {base64.b64encode(b'me:p@ss').decode().lower()}"
        assert len(proxy.asked) >= 2
        assert all(head[0].startswith("CONNECT ") and login in map(str.lower, head) for head in proxy.asked)
        assert KEY.token not in str(proxy.asked)
        assert "AWS4" not in str(proxy.asked)
        # A look at the certificate, two pages, a byte.
        assert [bool(given) for _, given, _ in secure.seen] == [False, True, True, False]
        proxy.shutdown()
        secure.shutdown()


def test_the_first_thing_to_see_a_certificate_sends_no_key(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with Server(tls=certificate) as secure:
        secure.behave["/bucket"] = lambda handler: handler.say(200, list_bucket("file"))
        assert paths(told(secure, lambda: KEY)) == ["file"]
        assert [bool(given) for _, given, _ in secure.seen] == [False, True]
        secure.shutdown()
