"""GET /healthz tells what Probe on the plugin's own socket says."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from csi.errors import DataCacheError
from csi.pb import csi_pb2_grpc
from csi.server import grpc_server, health
from csi.server.identity import IdentityServicer


class Plugin:
    """Answers Probe as `healthy` lets it; None stops it."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"unix://{path}"
        self.healthy: Callable[[], None] = lambda: None
        self.server = grpc_server.start_server(str(path), 4, self._register)

    def _register(self, server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(
            IdentityServicer("datacache.csi.io", lambda: self.healthy()), server
        )


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    running = Plugin(tmp_path / "csi.sock")
    yield running
    running.server.stop(None).wait()


@pytest.fixture
def port(plugin: Plugin) -> Iterator[int]:
    with health.serve_health(("127.0.0.1", 0), plugin.endpoint) as port:
        yield port


def get(port: int, path: str = "/healthz") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def raising() -> None:
    raise DataCacheError("the store is gone; mount it again")


def test_a_plugin_that_answers_is_healthy(port: int) -> None:
    assert get(port) == get(port, "/readyz") == (200, "ok")


def test_one_that_does_not_says_why_until_it_does(plugin: Plugin, port: int) -> None:
    plugin.healthy = raising
    assert get(port) == (500, "Probe: INTERNAL the store is gone; mount it again")
    plugin.healthy = lambda: None
    assert get(port) == (200, "ok")


def test_one_that_is_gone_is_not_healthy(plugin: Plugin, port: int) -> None:
    plugin.server.stop(None).wait()
    status, reason = get(port)
    assert status == 500
    assert "UNAVAILABLE" in reason


def test_nothing_else_is_told_there(port: int) -> None:
    assert get(port, "/metrics")[0] == 404


def test_an_address_that_is_taken_is_named(port: int, plugin: Plugin) -> None:
    with (
        pytest.raises(DataCacheError, match=rf"--health-address 127\.0\.0\.1:{port}"),
        health.serve_health(("127.0.0.1", port), plugin.endpoint),
    ):
        pass
