"""A watch outlives its server, and what it missed it finds by listing anew."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from csi.cluster.api_server import ApiServer as Client
from csi.cluster.watch import Watch
from tests import apiserver
from tests.apiserver import STRANGER, ApiServer
from tests.origins.onc_rpc import free_port

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture(scope="module")
def own_server() -> Iterator[ApiServer]:
    """One that may be stopped."""
    if apiserver.programs() is None:
        pytest.skip(apiserver.NOT_RUN)
    with ApiServer([STRANGER], crds=False) as server:
        yield server


class Told:
    """What a watch said."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[str, bool]] = queue.Queue()

    def __call__(self, name: str, thing: Mapping[str, Any] | None) -> None:
        self.calls.put((name, thing is not None))

    def until(self, *last: tuple[str, bool]) -> set[tuple[str, bool]]:
        told: set[tuple[str, bool]] = set()
        while not set(last) <= told:
            told.add(self.calls.get(timeout=50))
        return told


def make(server: ApiServer, name: str) -> None:
    server.client().call(
        "POST", MAPS, body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    )


def remove(server: ApiServer, name: str) -> None:
    server.client().call("DELETE", f"{MAPS}/{name}")


def test_a_watch_goes_on_when_its_server_comes_back(own_server: ApiServer) -> None:
    told = Told()
    make(own_server, "before")
    with Watch(own_server.client(), MAPS, told).run_in_background():
        own_server.stop()
        own_server.start()
        make(own_server, "after")
        assert ("before", True) not in told.until(("after", True))
    remove(own_server, "before")
    remove(own_server, "after")


def test_what_happened_while_a_watch_was_away_is_told_by_a_new_list(own_server: ApiServer) -> None:
    """Another server over the same data takes the changes, so that the first one, started again, does not
    know the old version (410)."""
    told = Told()
    for name in ("gone", "kept"):
        make(own_server, name)
    with Watch(own_server.client(), MAPS, told).run_in_background():
        own_server.stop()
        port, own_server.port = own_server.port, free_port()
        own_server.start()
        remove(own_server, "gone")
        make(own_server, "new")
        own_server.stop()
        own_server.port = port
        own_server.start()
        assert ("kept", True) not in told.until(("gone", False), ("new", True))
        make(own_server, "later")
        told.until(("later", True))
    for name in ("kept", "new", "later"):
        remove(own_server, name)


def test_a_version_that_is_too_old_makes_a_watch_list_anew(own_server: ApiServer) -> None:
    own_server.stop()
    own_server.start()
    told = Told()
    watch = Watch(own_server.client(), MAPS, told)
    make(own_server, "early")
    with watch.run_in_background():
        make(own_server, "one")
        told.until(("one", True))
        watch._version = "1"
        watch.refresh_selector()
        make(own_server, "two")
        told.until(("two", True))
    for name in ("early", "one", "two"):
        remove(own_server, name)


def test_a_watch_that_begins_without_a_server_tells_everything_later(own_server: ApiServer) -> None:
    told = Told()
    make(own_server, "there")
    own_server.stop()
    with Watch(own_server.client(), MAPS, told).run_in_background():
        own_server.start()
        told.until(("there", True))
    remove(own_server, "there")


def test_a_watch_without_the_right_to_it_says_so_and_ends_at_once(
    own_server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    with Watch(own_server.client(STRANGER), MAPS, told).run_in_background():
        pass
    assert "cannot list" in str([getattr(line, "fields", {}) for line in caplog.records])


def test_the_first_list_may_be_told(own_server: ApiServer) -> None:
    told = Told()
    make(own_server, "there")
    with Watch(own_server.client(), MAPS, told, full_objects=True).run_in_background():
        assert ("there", True) in told.until(("there", True))
    remove(own_server, "there")


def test_a_list_of_many_pages_is_told_whole(own_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi.cluster.watch._PAGE_SIZE", 2)
    told, names = Told(), [f"m-{number}" for number in range(5)]
    for name in names:
        make(own_server, name)
    with Watch(own_server.client(), MAPS, told, full_objects=True).run_in_background():
        told.until(*((name, True) for name in names))
    for name in names:
        remove(own_server, name)


def test_events_come_whole_however_they_are_cut(
    monkeypatch: pytest.MonkeyPatch, own_server: ApiServer
) -> None:
    client: Client = own_server.client()
    with client.stream(MAPS, {"watch": "1", "timeoutSeconds": "1"}, 30.0) as stream:
        parts = [b'{"a"', b": 1}\n{", b'"b": 2}\n', b"\n"]
        monkeypatch.setattr(stream._response, "stream", lambda size: iter(parts))
        assert list(stream) == [{"a": 1}, {"b": 2}]
