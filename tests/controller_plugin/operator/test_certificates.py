"""The webhook's certificates: what a client believes, and when they are made anew."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from controller_plugin.operator.certificates import Certificates, renew_certificates
from controller_plugin.operator.https_server import ReloadableTls, serve_app
from csi.errors import DataCacheError, FailedPrecondition

NOW = datetime.now(UTC)
NAMES = ["localhost", "webhook.example"]


def asked(port: int, trusted: str, name: str = "localhost") -> bytes:
    """What a client is answered that trusts `trusted` alone and looks for a server called `name`.

    Raises ssl.SSLError.
    """
    context = ssl.create_default_context(cadata=trusted)
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname=name) as stream,
    ):
        connection = http.client.HTTPConnection(name)
        connection.sock = stream
        connection.request("GET", "/")
        return connection.getresponse().read()


@contextmanager
def server(tls: ReloadableTls) -> Iterator[int]:
    async def answer(request: object) -> PlainTextResponse:
        return PlainTextResponse("here")

    with serve_app(Starlette(routes=[Route("/", answer)]), "127.0.0.1", 0, tls) as port:
        yield port


def test_a_client_that_trusts_the_authority_believes_the_server_under_all_its_names() -> None:
    made = renew_certificates(NAMES, NOW)
    with server(ReloadableTls(made)) as port:
        assert asked(port, made.ca_bundle) == asked(port, made.ca_bundle, "webhook.example") == b"here"
        with pytest.raises(ssl.SSLError):
            asked(port, made.ca_bundle, "other.example")
        with pytest.raises(ssl.SSLError):
            asked(port, renew_certificates(NAMES, NOW).ca_bundle)


def test_those_that_last_are_left_alone() -> None:
    made = renew_certificates(NAMES, NOW)
    assert renew_certificates(NAMES, NOW + timedelta(days=30), made) is made
    assert renew_certificates(NAMES[:1], NOW, made) is made


def test_a_certificate_is_renewed_while_it_still_counts_and_by_the_same_authority() -> None:
    made = renew_certificates(NAMES, NOW - timedelta(days=61))
    renewed = renew_certificates(NAMES, NOW, made)
    assert renewed.ca_bundle == made.ca_bundle
    assert renewed.certificate != made.certificate
    assert renewed.key != made.key
    tls = ReloadableTls(made)
    with server(tls) as port:
        assert asked(port, made.ca_bundle) == b"here"
        tls.load(renewed)
        assert asked(port, made.ca_bundle) == b"here"


def test_another_name_is_another_certificate() -> None:
    made = renew_certificates(NAMES, NOW)
    renewed = renew_certificates([*NAMES, "more.example"], NOW, made)
    with server(ReloadableTls(renewed)) as port:
        assert asked(port, made.ca_bundle, "more.example") == b"here"


def test_an_authority_near_its_end_is_followed_by_one_that_is_trusted_beside_it() -> None:
    made = renew_certificates(NAMES, NOW - timedelta(days=3000))
    renewed = renew_certificates(NAMES, NOW, made)
    assert renewed.ca_bundle.startswith(made.ca_bundle)
    assert renewed.ca_bundle != made.ca_bundle
    with server(ReloadableTls(renewed)) as port:
        assert asked(port, renewed.ca_bundle) == b"here"
    again = renew_certificates(NAMES, NOW + timedelta(days=3000), renewed)
    assert again.ca_bundle.count("BEGIN") == 2
    assert made.ca_bundle not in again.ca_bundle
    assert renew_certificates(NAMES, NOW, renewed) is renewed


def test_what_is_damaged_says_what_to_delete_and_no_key_is_shown() -> None:
    made = renew_certificates(NAMES, NOW)
    assert "PRIVATE" not in repr(made)
    with pytest.raises(DataCacheError, match="delete their Secret"):
        renew_certificates(NAMES, NOW, Certificates("no certificate", "", "", ""))


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=str(port)), serve_app(Starlette(), "127.0.0.1", port):
            pass
    assert not [thread for thread in threading.enumerate() if thread.name == "http"]
