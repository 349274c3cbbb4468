"""Where an inline volume's requests may go: hosts that the operator listed, and no further than these may
send it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.kernel.machine import Machine
from tests.kernel.requests import OK
from tests.origins.hub import Hub
from tests.origins.scripted import Server

pytestmark = pytest.mark.kernel
DENIED = grpc.StatusCode.PERMISSION_DENIED
DATA = b"data" * 1000


@contextmanager
def machine(folder: Path, hub: str, *origins: str) -> Iterator[Machine]:
    """A machine whose operator lists `origins`."""
    with Machine(folder, {"HF_ENDPOINT": hub, "DATACACHE_ALLOW_ORIGINS": ",".join(origins)}) as running:
        yield running


def serve(server: Server) -> None:
    def answer(handler: object) -> None:
        first, end = handler.span()  # type: ignore[attr-defined]
        handler.say(206, DATA[first:end], Content_Range=f"bytes {first}-{end - 1}/{len(DATA)}", ETag='"1"')  # type: ignore[attr-defined]

    server.behave["/data.bin"] = answer


def send_on(server: Server, location: str) -> None:
    server.behave["/data.bin"] = lambda handler: handler.say(302, Location=location)


@pytest.fixture
def mirror() -> Iterator[Server]:
    with Server() as running:
        yield running
        running.shutdown()


@pytest.fixture
def inner() -> Iterator[Server]:
    """A service of the node that no pod is to reach."""
    with Server("127.0.0.2") as running:
        serve(running)
        yield running
        running.shutdown()


def test_a_host_that_is_not_listed_is_not_asked(hub: Hub, mirror: Server, tmp_path: Path) -> None:
    serve(mirror)
    with machine(tmp_path, hub.endpoint) as one:
        code, message = one.inline("pod", {"url": f"{mirror.url}/data.bin"})
        assert code is DENIED
        assert "--allow-origins 127.0.0.1" in message
        assert mirror.seen == []
        assert one.half_made() == []


def test_a_listed_host_may_not_send_an_inline_volume_to_where_the_list_does_not_reach(
    hub: Hub, mirror: Server, inner: Server, tmp_path: Path
) -> None:
    with machine(tmp_path, hub.endpoint, "127.0.0.1") as one:
        for number, where in enumerate(
            (
                "169.254.169.254/latest",
                "[::ffff:169.254.169.254]/latest",
                "10.0.0.1/x",
                inner.url[7:] + "/data.bin",
            )
        ):
            send_on(mirror, f"http://{where}")
            code, message = one.inline(f"pod{number}", {"url": f"{mirror.url}/data.bin"})
            assert code is DENIED, (where, message)
            assert "--allow-origins" in message, (where, message)
        assert inner.seen == []
        assert one.half_made() == []
        serve(mirror)
        assert one.inline("last", {"url": f"{mirror.url}/data.bin"}) == (OK, "")


def test_a_redirect_to_what_is_listed_is_followed(
    hub: Hub, mirror: Server, inner: Server, tmp_path: Path
) -> None:
    send_on(mirror, f"{inner.url}/data.bin")
    with machine(tmp_path, hub.endpoint, "127.0.0.0/8") as one:
        assert one.inline("pod", {"url": f"{mirror.url}/data.bin"}) == (OK, "")
        assert (one.target("pod") / "data.bin").read_bytes() == DATA


def test_a_storage_class_may_name_a_mirror_on_the_loopback_whose_proof_is_no_inline_volumes(
    hub: Hub, mirror: Server, inner: Server, tmp_path: Path
) -> None:
    send_on(mirror, f"{inner.url}/data.bin")
    with machine(tmp_path, hub.endpoint, "127.0.0.1") as one:
        volume = one.create("volume", {"url": f"{mirror.url}/data.bin"})
        assert (one.show(volume, "class") / "data.bin").read_bytes() == DATA
        assert one.inline("pod", {"url": f"{mirror.url}/data.bin"})[0] is DENIED


def test_the_operators_hub_may_be_anywhere_but_not_send_an_inline_volume_anywhere(
    hub: Hub, tmp_path: Path
) -> None:
    hub.repo("org/small", {"config.json": b"{}"})
    hub.repo("org/large", {"model.safetensors": DATA}, lfs_over=100)
    with machine(tmp_path, hub.endpoint) as one:
        assert one.inline("small", {"repoId": "org/small"}) == (OK, "")
        code, message = one.inline("large", {"repoId": "org/large"})
        assert code is DENIED
        assert "127.0.0.2" in message
        assert one.stage(one.create("class", {"repoId": "org/large"})) == (OK, "")
