"""The ranged HTTP engine against a server that misbehaves on purpose."""

from __future__ import annotations

import base64
import os
import socket
import time
from pathlib import Path

import pytest

from csi.errors import (
    DataCacheError,
    InvalidParameter,
    OriginThrottled,
    OriginUnavailable,
    OriginUntrusted,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
)
from csi.manifest.manifest import Entry, EntryKind
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrl, FileUrls
from csi.sources.http.range_reader import RangeReader
from csi.sources.http.response_checks import parse_retry_after
from csi.sources.http.sites import parse_site
from tests.csi.sources.http.origin import (
    DATA,
    FILE,
    ORIGIN,
    SECRET,
    at,
    chunked,
    ranged,
    read,
    redirect,
    whole,
)
from tests.origins.scripted import Answer, Server


def test_ranges_come_over_one_connection(server: Server, pool: Connections) -> None:
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        for start in range(0, len(DATA), 100_000):
            length = min(100_000, len(DATA) - start)
            assert read(reader, start, length) == DATA[start : start + length]
    assert server.accepted == 1
    assert {authorization for _, authorization, _ in server.seen} == {"Bearer very-secret"}


def test_a_credential_stays_with_its_host(server: Server, other: Server, pool: Connections) -> None:
    server.behave["/file"] = redirect(f"{other.url}/signed?sig=1")
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        assert read(reader, 10, 20) == DATA[10:30]
    assert [authorization for _, authorization, _ in server.seen + other.seen] == ["Bearer very-secret", None]


def test_a_credential_follows_on_its_own_host_but_not_to_another_port(
    server: Server, pool: Connections
) -> None:
    with Server() as neighbour:
        neighbour.behave["/there"] = ranged
        server.behave["/file"] = redirect("/elsewhere")
        server.behave["/elsewhere"] = redirect(f"{neighbour.url}/there")
        with RangeReader(pool, at(f"{server.url}/file")) as reader:
            assert read(reader, 0, 5) == DATA[:5]
        neighbour.shutdown()
    assert [authorization for _, authorization, _ in server.seen + neighbour.seen] == [
        "Bearer very-secret",
        "Bearer very-secret",
        None,
    ]


def test_a_signed_address_is_remembered_until_it_fails(
    server: Server, other: Server, pool: Connections
) -> None:
    server.behave["/file"] = redirect(f"{other.url}/signed?sig=1")
    addresses = at(f"{server.url}/file")
    with RangeReader(pool, addresses) as first, RangeReader(pool, addresses) as second:
        assert [read(reader, n, 3) for n, reader in enumerate((first, second, first))] == [
            DATA[n : n + 3] for n in range(3)
        ]
        assert (len(server.seen), len(other.seen)) == (1, 3)
        for ended in (400, 401, 403, 410):
            old, new = f"/signed{ended}", f"/renewed{ended}"
            addresses.remember(FILE, FileUrl(other.url + old, parse_site(server.url)))
            other.behave[old] = lambda answer, status=ended: answer.say(status, b"<Expired/>")
            other.behave[new] = ranged
            server.behave["/file"] = redirect(other.url + new)
            assert read(first, 7, 9) == DATA[7:16]
            assert addresses.find_cached(FILE) == (other.url + new, parse_site(server.url))


@pytest.fixture
def signing(server: Server) -> FileUrls:
    """Addresses that the source signs itself, each with a number of its own."""
    numbers = iter(range(10**6))
    return FileUrls(lambda entry: f"{server.url}/file?sig={next(numbers)}", SECRET, is_signed=True)


def asked_for(server: Server) -> list[str]:
    return [path.partition("?")[2] for path, _, _ in server.seen]


@pytest.mark.parametrize("ended", [400, 401, 403])
def test_an_address_that_the_source_signed_is_signed_anew_when_it_ends(
    server: Server, pool: Connections, signing: FileUrls, ended: int
) -> None:
    valid = {"sig=0"}
    server.behave["/file"] = lambda a: (
        ranged(a) if asked_for(server)[-1] in valid else a.say(ended, b"<Code>ExpiredToken</Code>")
    )
    with RangeReader(pool, signing) as first, RangeReader(pool, signing) as second:
        assert read(first, 0, 5) + read(second, 5, 5) == DATA[:10]
        valid.clear()
        valid.add("sig=1")
        assert read(first, 10, 5) + read(second, 15, 5) == DATA[10:20]
    assert asked_for(server) == ["sig=0", "sig=0", "sig=0", "sig=1", "sig=1"]


def test_an_address_that_is_refused_right_after_it_was_signed_is_an_error(
    server: Server, pool: Connections, signing: FileUrls
) -> None:
    with RangeReader(pool, signing) as reader:
        server.behave["/file"] = ranged
        read(reader, 0, 5)
        server.behave["/file"] = lambda answer: answer.say(403)
        with pytest.raises(PermissionDenied):
            read(reader, 5, 5)
    assert asked_for(server) == ["sig=0", "sig=0", "sig=1"]


def test_only_the_last_files_addresses_are_remembered(pool: Connections) -> None:
    addresses = at("http://origin.invalid/")
    entries = [Entry(f"{n}", EntryKind.FILE, size=1) for n in range(5000)]
    for entry in entries:
        addresses.remember(entry, FileUrl(f"http://origin.invalid/{entry.path}", ORIGIN))
    assert addresses.find_cached(entries[0]) is None
    assert addresses.find_cached(entries[-1]) == ("http://origin.invalid/4999", ORIGIN)
    assert sum(addresses.find_cached(entry) is not None for entry in entries) < 2000


def test_a_condition_goes_to_every_host_and_its_failure_is_a_change(
    server: Server, other: Server, pool: Connections
) -> None:
    seen: list[str | None] = []

    def conditional(answer: Answer) -> None:
        seen.append(answer.headers.get("If-Match"))
        answer.say(412) if len(seen) > 3 else ranged(answer)

    server.behave["/file"] = lambda answer: (
        seen.append(answer.headers.get("If-Match")),
        redirect(f"{other.url}/signed?sig=hidden")(answer),
    )
    other.behave["/signed"] = conditional
    addresses = FileUrls(
        lambda entry: f"{server.url}/file",
        SECRET,
        condition_headers=lambda entry: {"If-Match": f'"{entry.size}"'},
    )
    with RangeReader(pool, addresses) as reader:
        assert read(reader, 0, 5) + read(reader, 5, 5) == DATA[:10]
        with pytest.raises(SourceChanged, match=f"{FILE.path}.* has changed since it was listed") as error:
            read(reader, 10, 5)
    assert set(seen) == {f'"{len(DATA)}"'}
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_between_two_ranges_is_caught(
    server: Server, pool: Connections, ranges: bool
) -> None:
    etag = ['"1"']

    def tagged(answer: Answer) -> None:
        start, end = answer.span()
        if ranges:
            answer.say(
                206, DATA[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}", ETag=etag[0]
            )
        else:
            answer.say(200, DATA, ETag=etag[0])

    server.behave["/file"] = tagged
    addresses = FileUrls(
        lambda entry: f"{server.url}/file", is_unchanged=lambda entry, headers: headers.get("etag") == '"1"'
    )
    with RangeReader(pool, addresses) as reader:
        assert read(reader, 500, 10) == DATA[500:510]
        etag[0] = '"2"'
        with pytest.raises(SourceChanged, match=FILE.path):
            read(reader, 0, 10)


def test_a_fresh_signed_address_that_refuses_is_an_error(
    server: Server, other: Server, pool: Connections
) -> None:
    server.behave["/file"] = redirect(f"{other.url}/signed?Signature=abc")
    other.behave["/signed"] = lambda answer: answer.say(403)
    with RangeReader(pool, at(f"{server.url}/file")) as reader, pytest.raises(PermissionDenied) as error:
        read(reader, 0, 1)
    assert "abc" not in str(error.value)
    assert len(server.seen) == 2


def test_an_address_that_ended_before_it_was_asked_is_asked_for_once_more(
    server: Server, other: Server, pool: Connections
) -> None:
    """As where a signing key is changed just between the redirect and the request that follows it."""
    ways = iter([lambda answer: answer.say(403), ranged])
    server.behave["/file"] = redirect(f"{other.url}/signed")
    other.behave["/signed"] = lambda answer: next(ways)(answer)
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        assert read(reader, 0, 10) == DATA[:10]


def test_redirects_end(server: Server, pool: Connections) -> None:
    server.behave["/file"] = redirect("/file")
    with (
        RangeReader(pool, at(f"{server.url}/file")) as reader,
        pytest.raises(OriginUnavailable, match="redirects"),
    ):
        read(reader, 0, 1)
    assert len(server.seen) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[broken", ""])
def test_a_redirect_to_no_http_address_is_refused(server: Server, pool: Connections, location: str) -> None:
    server.behave["/file"] = redirect(location)
    with RangeReader(pool, at(f"{server.url}/file")) as reader, pytest.raises(OriginUnavailable):
        read(reader, 0, 1)


@pytest.mark.parametrize("behaviour", [whole, chunked])
def test_a_server_without_ranges_is_read_as_one_stream(
    server: Server, pool: Connections, behaviour: object
) -> None:
    server.behave["/file"] = behaviour
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        for start in range(50_000, len(DATA), 200_000):
            length = min(100_000, len(DATA) - start)
            assert read(reader, start, length) == DATA[start : start + length]
        assert len(server.seen) == 1
        assert read(reader, len(DATA) - 10, 10) == DATA[-10:]
        assert read(reader, 5, 10) == DATA[5:15]
    # The whole file was read to its end once: that connection served the next request.
    assert server.accepted == 1


def test_fewer_bytes_than_asked_for_are_completed(server: Server, pool: Connections) -> None:
    def short(answer: Answer) -> None:
        start, end = answer.span()
        end = min(end, start + 1000)
        answer.say(206, DATA[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}")

    server.behave["/file"] = short
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        assert read(reader, 500, 2500) == DATA[500:3000]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (lambda a: a.say(206, b"12345", Content_Range=f"bytes 3-7/{len(DATA)}"), OriginUnavailable),
        (lambda a: a.say(206, b"12345", Content_Range=f"bytes 0-9/{len(DATA)}"), OriginUnavailable),
        (lambda a: a.say(206, b"12345"), OriginUnavailable),
        (lambda a: a.say(206, b"12345", Content_Range=f"bytes 0-{'4' * 5000}/*"), OriginUnavailable),
        (lambda a: a.say(206, b"12345", Content_Range=f"bytes 0-4/{'4' * 5000}"), OriginUnavailable),
        (lambda a: a.say(206, b"12345", Content_Range=f"bytes 0-4/{len(DATA) + 1}"), SourceChanged),
        (lambda a: a.say(200, DATA + b"+"), SourceChanged),
        (
            lambda a: a.say(206, b"12345", Content_Range=f"bytes 0-4/{len(DATA)}", Content_Encoding="gzip"),
            OriginUnavailable,
        ),
        (lambda a: a.say(412), SourceChanged),
        (lambda a: a.say(416, Content_Range="bytes */3"), SourceChanged),
        (lambda a: a.say(401), Unauthenticated),
        (lambda a: a.say(403), PermissionDenied),
        (lambda a: a.say(404, b"<html>"), SourceNotFound),
        (lambda a: a.say(500), OriginUnavailable),
        (lambda a: a.say(418), OriginUnavailable),
    ],
)
def test_an_answer_that_does_not_fit_is_told_in_words(
    server: Server, pool: Connections, behaviour: object, expected: type[DataCacheError]
) -> None:
    server.behave["/file"] = behaviour
    with RangeReader(pool, at(f"{server.url}/file?token=hidden")) as reader, pytest.raises(expected) as error:
        read(reader, 0, 5)
    assert type(error.value) is expected
    assert FILE.path in str(error.value)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_plea_for_patience_carries_its_seconds(server: Server, pool: Connections, status: int) -> None:
    server.behave["/file"] = lambda answer: answer.say(status, Retry_After="17")
    with RangeReader(pool, at(f"{server.url}/file")) as reader, pytest.raises(OriginThrottled) as error:
        read(reader, 0, 1)
    assert error.value.retry_after == 17


def test_a_used_up_allowance_spares_the_origin_requests_it_would_refuse(
    server: Server, pool: Connections
) -> None:
    def last(answer: Answer) -> None:
        start, end = answer.span()
        answer.say(
            206,
            DATA[start:end],
            Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}",
            RateLimit='"resolvers";r=0;t=40',
        )

    server.behave["/file"] = last
    addresses = at(f"{server.url}/file")
    with RangeReader(pool, addresses) as first, RangeReader(pool, addresses) as second:
        assert read(first, 0, 5) == DATA[:5]
        for reader in (first, second):
            with pytest.raises(OriginThrottled) as error:
                read(reader, 5, 5)
            assert 39 < error.value.retry_after <= 40
    assert len(server.seen) == 1


def test_retry_after_may_be_a_date_or_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(1_000_100))
    assert parse_retry_after({"Retry-After": later}) == 100
    nonsense = ({}, {"Retry-After": "soon"}, {"Retry-After": "-3"}, {"Retry-After": "\u00b2"})
    assert [parse_retry_after(headers) for headers in nonsense] == [0, 0, 0, 0]


def test_a_body_that_ends_early_is_told_and_the_next_read_is_right(server: Server, pool: Connections) -> None:
    def cut(answer: Answer) -> None:
        start, end = answer.span()
        server.behave["/file"] = ranged
        answer.say(
            206,
            DATA[start : start + 10],
            Content_Length=str(end - start),
            Content_Range=f"bytes {start}-{end - 1}/{len(DATA)}",
        )
        answer.close_connection = True

    server.behave["/file"] = cut
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        with pytest.raises(OriginUnavailable, match="early"):
            read(reader, 100, 1000)
        assert read(reader, 100, 1000) == DATA[100:1100]


def test_a_connection_closed_while_it_idled_costs_no_error(server: Server, pool: Connections) -> None:
    def last(answer: Answer) -> None:
        ranged(answer)
        # Closes without having said so.
        answer.close_connection = True

    server.behave["/file"] = last
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        assert [read(reader, n, 4) for n in range(5)] == [DATA[n : n + 4] for n in range(5)]


def test_a_refused_connection_and_an_unknown_name_are_told_apart(pool: Connections) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with (
            RangeReader(pool, at(f"http://user:pass@127.0.0.1:{port}/x?token=hidden")) as reader,
            pytest.raises(OriginUnavailable) as refused,
        ):
            read(reader, 0, 1)
    with (
        RangeReader(pool, at("http://no-such-host.invalid/x")) as reader,
        pytest.raises(OriginUnavailable, match="name cannot be resolved"),
    ):
        read(reader, 0, 1)
    assert str(refused.value) == f"127.0.0.1:{port}: connection refused (requesting {FILE.path!r})"


@pytest.mark.parametrize("key", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_a_ca_bundle_of_the_environment_is_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with Server(tls=certificate) as server:
        server.behave["/file"] = ranged
        with (
            RangeReader(Connections(1), at(f"{server.url}/file")) as reader,
            pytest.raises(OriginUntrusted, match="certificate is not trusted"),
        ):
            read(reader, 0, 5)
        monkeypatch.setenv(key, str(certificate.with_name("cert")))
        pool = Connections(1)
        with RangeReader(pool, at(f"{server.url}/file")) as reader:
            assert read(reader, 0, 5) == DATA[:5]
        pool.close()
        server.shutdown()


def test_a_ca_bundle_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with pytest.raises(InvalidParameter, match="REQUESTS_CA_BUNDLE.*/no/such/bundle.pem"):
        Connections(1)


def forward(answer: Answer) -> None:
    """As a proxy does for http: the request line has the whole URL."""
    ranged(answer)


def test_a_proxy_of_the_environment_is_used_unless_excepted(
    server: Server, monkeypatch: pytest.MonkeyPatch, pool: Connections
) -> None:
    with Server() as proxy:
        target = "http://origin.invalid/file"
        proxy.behave[target] = forward
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:pa%20ss@"))
        with RangeReader(pool, at(target)) as reader:
            assert read(reader, 3, 4) == DATA[3:7]
        assert proxy.seen[0][0] == target
        monkeypatch.setenv("no_proxy", "origin.invalid,127.0.0.1")
        with RangeReader(pool, at(f"{server.url}/file")) as reader:
            assert read(reader, 3, 4) == DATA[3:7]
        assert (len(proxy.seen), len(server.seen)) == (1, 1)
        proxy.shutdown()


def test_a_proxy_login_is_sent_to_the_proxy(monkeypatch: pytest.MonkeyPatch, pool: Connections) -> None:
    seen: list[str | None] = []

    def note(answer: Answer) -> None:
        seen.append(answer.headers.get("Proxy-Authorization"))
        ranged(answer)

    with Server() as proxy:
        proxy.behave["http://origin.invalid/file"] = note
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:pa%20ss@"))
        with RangeReader(pool, at("http://origin.invalid/file")) as reader:
            read(reader, 0, 1)
        proxy.shutdown()
    assert seen == ["Basic " + base64.b64encode(b"me:pa ss").decode()]


def test_a_proxy_that_is_down_is_named_as_such(monkeypatch: pytest.MonkeyPatch, pool: Connections) -> None:
    monkeypatch.setenv("http_proxy", "http://me:hidden@127.0.0.1:1")
    with (
        RangeReader(pool, at("http://origin.invalid/file")) as reader,
        pytest.raises(OriginUnavailable, match="proxy") as error,
    ):
        read(reader, 0, 1)
    assert "hidden" not in str(error.value)


def test_closing_a_reader_in_the_middle_closes_its_connection(server: Server, pool: Connections) -> None:
    server.behave["/file"] = whole
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        read(reader, 0, 10)
    assert os.listdir("/proc/self/fd")
    with RangeReader(pool, at(f"{server.url}/file")) as reader:
        read(reader, 0, 10)
    assert server.accepted == 2


def test_a_length_of_thousands_of_digits_is_no_failure_of_ours(server: Server, pool: Connections) -> None:
    server.behave["/file"] = lambda answer: answer.say(404, b"", Content_Length="9" * 5000)
    with RangeReader(pool, at(f"{server.url}/file")) as reader, pytest.raises(DataCacheError) as error:
        read(reader, 0, 10)
    assert isinstance(error.value, SourceNotFound)
