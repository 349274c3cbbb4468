"""A Metalink document may name what not everybody who reads it may read: an image on the node is no way
round that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import grpc
import pytest

from tests.conformance.url_kit import metalink
from tests.kernel.conftest import Start
from tests.kernel.machine import Machine
from tests.kernel.requests import OK
from tests.origins.scripted import Answer, Server

pytestmark = pytest.mark.kernel

GOOD, SECOND, WRONG = ({"accessToken": f"{name}-s3cr3t"} for name in ("good", "second", "wrong"))
OPEN, CLOSED = b"for everybody", b"weights that not everybody may have" * 1000


def sends(data: bytes, *readers: dict[str, str]) -> Callable[[Answer], None]:
    """Bytes for everybody, or for `readers` alone."""

    def answer(to: Answer) -> None:
        if readers and to.headers["Authorization"] not in {
            f"Bearer {reader['accessToken']}" for reader in readers
        }:
            to.say(401)
        elif to.headers["Range"]:
            first, end = to.span()
            end = min(end, len(data))
            to.say(206, data[first:end], Content_Range=f"bytes {first}-{end - 1}/{len(data)}")
        else:
            to.say(200, data)

    return answer


@pytest.fixture
def attributes() -> Iterator[dict[str, str]]:
    with Server() as server:
        files = {"README": OPEN, "weights.bin": CLOSED}
        body = metalink({name: (f"{server.url}/{name}", data) for name, data in files.items()})
        server.behave |= {
            "/all.meta4": sends(body),
            "/README": sends(OPEN),
            "/weights.bin": sends(CLOSED, GOOD, SECOND),
        }
        yield {"type": "URL", "metalink": f"{server.url}/all.meta4"}
        server.shutdown()


def weights(machine: Machine, pod: str) -> str:
    return hashlib.sha256((machine.target(pod) / "weights.bin").read_bytes()).hexdigest()


def test_an_image_is_not_handed_to_who_may_read_the_document_and_one_of_its_files(
    start: Start, attributes: dict[str, str]
) -> None:
    machine = start()
    assert machine.inline("owner", attributes, GOOD) == (OK, "")
    for secrets in ({}, WRONG):
        code, message = machine.inline("stranger", attributes, secrets)
        assert code is grpc.StatusCode.UNAUTHENTICATED, message
        assert "s3cr3t" not in message, message
        assert not machine.target("stranger").exists() or list(machine.target("stranger").iterdir()) == []
    assert (
        machine.inline("second", attributes, SECOND) == machine.inline("again", attributes, GOOD) == (OK, "")
    )
    assert weights(machine, "second") == weights(machine, "again") == hashlib.sha256(CLOSED).hexdigest()
    assert len(machine.sealed()) == 1
