"""Where requests may go: by the address that is connected to, not by the name, and on every hop."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from csi.destinations.destinations import (
    AddressScope,
    Destinations,
    classify_address,
    get_literal_addresses,
    parse_destinations,
)
from csi.errors import OriginUnavailable, PermissionDenied
from csi.manifest.manifest import Entry, EntryKind
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.hub import HubSpec
from csi.sources.http.connections import Connections
from csi.sources.http.file_urls import FileUrls
from csi.sources.http.range_reader import RangeReader
from csi.sources.http.sites import parse_site
from csi.sources.hubs.hub_client import HubClient
from csi.sources.hubs.modelscope import ModelScopeSource
from tests.origins.scripted import Answer, Server

FILE = Entry("file", EntryKind.FILE, size=4)
METADATA = "169.254.169.254"


def whole(answer: Answer) -> None:
    answer.say(206, b"data", Content_Range="bytes 0-3/4")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.behave["/file"] = whole
        yield running
        running.shutdown()


@pytest.fixture
def other() -> Iterator[Server]:
    with Server("127.0.0.2") as running:
        running.behave["/file"] = whole
        yield running
        running.shutdown()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names resolve to, one address after the other as they are asked for; the last one stays.

    Addresses resolve as ever.
    """
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def resolve(host: str, *more: object, **options: object) -> object:
        addresses = known.get(host)
        if addresses is None:
            return real(host, *more, **options)  # type: ignore[arg-type]
        return real(addresses[0] if len(addresses) == 1 else addresses.pop(0), *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def read(policy: Destinations, url: str) -> bytes:
    pool = Connections(1, policy)
    try:
        with RangeReader(pool, FileUrls(lambda entry: url)) as reader:
            buffer = bytearray(4)
            reader.read_into(FILE, 0, memoryview(buffer))
            return bytes(buffer)
    finally:
        pool.close()


def redirects_to(location: str) -> Callable[[Answer], None]:
    return lambda answer: answer.say(302, Location=location)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", AddressScope.PUBLIC),
        ("2001:4860:4860::8888", AddressScope.PUBLIC),
        ("10.1.2.3", AddressScope.PRIVATE),
        ("172.16.0.1", AddressScope.PRIVATE),
        ("192.168.0.1", AddressScope.PRIVATE),
        ("100.64.0.1", AddressScope.PRIVATE),
        ("192.0.2.1", AddressScope.PRIVATE),
        ("240.0.0.1", AddressScope.PRIVATE),
        ("fd00::1", AddressScope.PRIVATE),
        ("fec0::1", AddressScope.PRIVATE),
        ("2001:db8::1", AddressScope.PRIVATE),
        ("64:ff9b:1::a00:1", AddressScope.PRIVATE),
        ("127.0.0.1", AddressScope.LOOPBACK),
        ("127.255.0.9", AddressScope.LOOPBACK),
        ("::1", AddressScope.LOOPBACK),
        ("0.0.0.0", AddressScope.LOOPBACK),
        ("0.1.2.3", AddressScope.LOOPBACK),
        ("::", AddressScope.LOOPBACK),
        (METADATA, AddressScope.LINK_LOCAL),
        ("fe80::1", AddressScope.LINK_LOCAL),
        ("fe80::1%eth0", AddressScope.LINK_LOCAL),
        ("100.100.100.200", AddressScope.LINK_LOCAL),
        ("168.63.129.16", AddressScope.LINK_LOCAL),
        ("fd00:ec2::254", AddressScope.LINK_LOCAL),
        ("fd20:ce::254", AddressScope.LINK_LOCAL),
        ("224.0.0.1", AddressScope.NOWHERE),
        ("ff02::1", AddressScope.NOWHERE),
        ("255.255.255.255", AddressScope.NOWHERE),
        ("::ffff:169.254.169.254", AddressScope.LINK_LOCAL),
        ("::ffff:10.0.0.1", AddressScope.PRIVATE),
        ("::ffff:8.8.8.8", AddressScope.PUBLIC),
        ("::127.0.0.1", AddressScope.LOOPBACK),
        ("64:ff9b::169.254.169.254", AddressScope.LINK_LOCAL),
        ("64:ff9b::8.8.8.8", AddressScope.PUBLIC),
        ("2002:a9fe:a9fe::", AddressScope.LINK_LOCAL),
        ("2002:7f00:1::", AddressScope.LOOPBACK),
    ],
)
def test_an_address_is_what_it_reaches(address: str, expected: AddressScope) -> None:
    assert classify_address(address) is expected


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "127.0.0.1.",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "localhost",
    ],
)
def test_every_spelling_of_the_loopback_is_refused_to_an_untrusted_source(server: Server, host: str) -> None:
    with pytest.raises(PermissionDenied, match="--allow-origins"):
        read(Destinations(trusted=False), f"http://{host}:{server.server_address[1]}/file")
    assert server.accepted == 0


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]", "localhost", METADATA, "[fe80::1]"]
)
def test_behind_a_proxy_addresses_are_still_judged(
    server: Server, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    with pytest.raises(PermissionDenied):
        read(Destinations(trusted=False), f"http://{host}:1234/file")
    server.behave["http://origin.invalid/file"] = whole
    assert read(Destinations(trusted=False), "http://origin.invalid/file") == b"data"


def test_what_is_no_address_is_left_to_the_resolver() -> None:
    assert [
        get_literal_addresses(name) for name in ("example.com", "", "1.2.3.4.5", "x" * 300, "\u00e9")
    ] == [[]] * 5


def test_an_administrators_word_may_be_the_loopback(server: Server) -> None:
    assert read(Destinations(), f"{server.url}/file") == b"data"


@pytest.mark.parametrize(
    "listed", ["127.0.0.1", "127.0.0.0/8", "127.0.0.1:{port}", "*.1,127.0.0.1", "localhost,127.0.0.0/31"]
)
def test_what_the_operator_lists_may_be_asked_by_anybody(server: Server, listed: str) -> None:
    allowed = parse_destinations(listed.format(port=server.server_address[1]))
    assert read(Destinations(allowed, trusted=False), f"{server.url}/file") == b"data"


@pytest.mark.parametrize("listed", ["127.0.0.2", "127.0.0.1:1", "10.0.0.0/8", "localhost"])
def test_what_is_not_listed_may_not(server: Server, listed: str) -> None:
    with pytest.raises(PermissionDenied, match="127.0.0.1") as error:
        read(Destinations(parse_destinations(listed), trusted=False), f"{server.url}/file?secret=1")
    assert "secret" not in str(error.value)
    assert server.accepted == 0


@pytest.mark.parametrize(
    ("listed", "lets"),
    [
        ("mirror.test", True),
        ("*.test", True),
        ("*.mirror.test", False),
        ("irror.test", False),
        ("test", False),
    ],
)
def test_a_name_that_is_listed_may_be_wherever_it_is(
    server: Server, names: dict[str, list[str]], listed: str, lets: bool
) -> None:
    names["mirror.test"] = ["127.0.0.1"]
    policy, url = (
        Destinations(parse_destinations(listed), trusted=False),
        f"http://mirror.test:{server.server_address[1]}/file",
    )
    if lets:
        assert read(policy, url) == b"data"
    else:
        with pytest.raises(PermissionDenied, match="mirror.test.*127.0.0.1"):
            read(policy, url)


def test_a_name_that_changes_its_address_after_the_check_is_not_followed(
    server: Server, names: dict[str, list[str]]
) -> None:
    # Whatever is resolved a second time would be the node itself.
    names["rebinding.test"] = ["127.0.0.3", "127.0.0.1"]
    with pytest.raises(OriginUnavailable, match="refused"):
        read(
            Destinations(("127.0.0.3",), trusted=False),
            f"http://rebinding.test:{server.server_address[1]}/file",
        )
    assert server.accepted == 0
    assert names["rebinding.test"] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "target",
    [METADATA, "[::ffff:169.254.169.254]", "10.0.0.1", "[fd00::1]", "224.0.0.1", "[2002:a9fe:a9fe::]"],
)
def test_an_inline_volumes_redirect_to_what_is_not_public_is_refused(server: Server, target: str) -> None:
    server.behave["/file"] = redirects_to(f"http://{target}/latest/meta-data")
    with pytest.raises(PermissionDenied, match="--allow-origins"):
        read(Destinations(("127.0.0.1",), trusted=False), f"{server.url}/file")


def test_what_a_listed_origin_redirects_to_has_to_be_listed_too(server: Server, other: Server) -> None:
    server.behave["/file"] = redirects_to(f"{other.url}/file")
    with pytest.raises(PermissionDenied, match="127.0.0.2"):
        read(Destinations(("127.0.0.1",), trusted=False), f"{server.url}/file")
    assert read(Destinations(("127.0.0.1", "127.0.0.2"), trusted=False), f"{server.url}/file") == b"data"


def test_a_mirror_on_the_loopback_may_redirect_on_the_loopback_but_never_to_a_link(
    server: Server, other: Server
) -> None:
    server.behave["/file"] = redirects_to(f"{other.url}/file")
    assert read(Destinations(), f"{server.url}/file") == b"data"
    server.behave["/file"] = redirects_to(f"http://{METADATA}/file")
    with pytest.raises(PermissionDenied, match=METADATA):
        read(Destinations(), f"{server.url}/file")


@pytest.mark.parametrize(
    ("home", "farthest"),
    [
        ("8.8.8.8", AddressScope.PUBLIC),
        ("10.0.0.1", AddressScope.PRIVATE),
        ("127.0.0.1", AddressScope.LOOPBACK),
        (METADATA, AddressScope.PUBLIC),
    ],
)
def test_a_redirect_leads_no_nearer_than_its_origin_is(home: str, farthest: AddressScope) -> None:
    assert Destinations().max_scope(home) is farthest
    assert Destinations(trusted=False).max_scope(home) is AddressScope.PUBLIC


def test_an_origin_whose_name_cannot_be_resolved_for_a_moment_is_not_taken_for_another() -> None:
    with pytest.raises(socket.gaierror):
        Destinations().max_scope("no-such.invalid")
    # A proxy knows names that are not known here: then nothing near is allowed.
    assert Destinations().max_scope("no-such.invalid", proxied=True) is AddressScope.PUBLIC
    assert Destinations().max_scope("127.0.0.1", proxied=True) is AddressScope.LOOPBACK


def test_a_connection_that_one_might_make_is_not_lent_to_another(
    server: Server, names: dict[str, list[str]]
) -> None:
    """A public origin's redirect to the loopback is refused although a connection to there is open
    already."""
    pool = Connections(1)
    pool.get(f"{server.url}/file", {}).drain_conn()
    with pytest.raises(PermissionDenied):
        pool.get(f"{server.url}/file", {}, parse_site("http://8.8.8.8/"))
    pool.close()
    assert server.accepted == 1


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name with two addresses: 127.0.0.1 and 127.0.0.2."""
    real = socket.getaddrinfo

    def resolve(host: str, *more: object, **options: object) -> list[object]:
        hosts = ("127.0.0.1", "127.0.0.2") if host == "mixed.test" else (host,)
        return [found for one in hosts for found in real(one, *more, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return "mixed.test"


def test_a_client_that_chooses_among_addresses_itself_may_ask_none_of_a_name_with_one_that_is_refused(
    server: Server, mixed: str
) -> None:
    url, policy = (
        server.url.replace("127.0.0.1", mixed) + "/file",
        Destinations(("127.0.0.1",), trusted=False),
    )
    with (
        HubClient(parse_site(server.url), policy) as client,
        pytest.raises(PermissionDenied, match="mixed.test.* is 127.0.0.2"),
    ):
        client.get(url)
    assert server.accepted == 0
    # The engine connects to what it judged, so it takes the one that it may.
    assert read(policy, url) == b"data"
    with HubClient(parse_site(server.url), Destinations(("127.0.0.0/30",), trusted=False)) as client:
        assert client.get(url).content == b"data"


def test_https_is_not_left(certificate: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert")))
    with Server(tls=certificate) as secure:
        secure.behave["/file"] = redirects_to(f"{server.url}/file")
        with pytest.raises(PermissionDenied, match="from https to http"):
            read(Destinations(), f"{secure.url}/file")
        with (
            HubClient(parse_site(secure.url)) as client,
            pytest.raises(PermissionDenied, match="from https to http"),
        ):
            client.get(f"{secure.url}/file")
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", secure.url)
        secure.behave["/api/v1/models/org/name/repo/files"] = redirects_to(f"{server.url}/file")
        model = ModelScopeSource(CacheSpec(HubSpec("ModelScope/Model", "org/name", "master")), None)
        with closing(model), pytest.raises(PermissionDenied, match="from https to http"):
            model.resolve(model.pin())
        secure.shutdown()
    assert server.accepted == 0


def test_a_certificate_is_the_names_not_the_addresss(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.with_name("cert")))
    names["mirror.test"] = ["127.0.0.1"]
    with Server(tls=certificate) as secure:
        with pytest.raises(OriginUnavailable, match="certificate is not trusted"):
            read(Destinations(), secure.url.replace("127.0.0.1", "mirror.test") + "/file")
        secure.behave["/file"] = whole
        assert read(Destinations(), f"{secure.url}/file") == b"data"
        secure.shutdown()


@pytest.mark.parametrize("target", [METADATA, "10.0.0.1", "name.test"])
def test_the_hubs_facts_do_not_come_from_elsewhere_either(
    server: Server, names: dict[str, list[str]], target: str
) -> None:
    names["name.test"] = [METADATA]
    server.behave["/api"] = redirects_to(f"http://{target}/api")
    with (
        HubClient(parse_site(server.url), Destinations(trusted=False, allowed=("127.0.0.1",))) as client,
        pytest.raises(PermissionDenied),
    ):
        client.get(f"{server.url}/api")


def test_the_hubs_facts_may_come_from_a_neighbour_of_a_trusted_hub(server: Server, other: Server) -> None:
    server.behave["/api"] = redirects_to(f"{other.url}/file")
    with HubClient(parse_site(server.url)) as client:
        answer: httpx2.Response = client.get(f"{server.url}/api")
        assert answer.content == b"data"
    with (
        HubClient(parse_site(server.url), Destinations(trusted=False)) as client,
        pytest.raises(PermissionDenied, match="127.0.0.1"),
    ):
        client.get(f"{server.url}/api")


@pytest.mark.parametrize(
    "text", ["http://host", "a b", "10.0.0.0/33", "host/path", "*", "me@host", "host:port", "*.*.com", "-x"]
)
def test_what_is_no_destination_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse_destinations(f"fine.example,{text}")
    assert repr(text) in str(error.value)


def test_a_list_of_every_kind_is_read() -> None:
    text = "hub.example, *.example.com:8443,10.0.0.0/8, [fd00::1]:80, fd00::/8, ::1, 127.0.0.1:8080,"
    assert parse_destinations(text) == (
        "hub.example",
        "*.example.com:8443",
        "10.0.0.0/8",
        "[fd00::1]:80",
        "fd00::/8",
        "::1",
        "127.0.0.1:8080",
    )
    assert parse_destinations("") == ()
