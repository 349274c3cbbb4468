"""Two repositories that hold the same are one image, but each is read with its own credential at its own
address."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, content, until
from tests.kernel.requests import OK, answer_of
from tests.origins.hub import Hub

pytestmark = pytest.mark.kernel

GOOD = {"token": "good-s3cr3t"}


def test_a_fill_goes_on_from_the_repository_of_who_asks(start: Start, hub: Hub, tmp_path: Path) -> None:
    """The private one began it, its token was revoked.

    Who names the public copy neither needs nor hears of the private one.
    """
    file = content(tmp_path / "large", 96 * MIB)
    hub.repo("org/private", {"model.bin": file}, private=True, tokens={GOOD["token"]})
    hub.repo("org/copy", {"model.bin": file})
    machine = start("--fill-connections", "4")
    hub.faults.rate = 24e6
    first = machine.inline_soon("first", {"repoId": "org/private"}, GOOD)
    assert until(lambda: hub.counters.bytes_sent["org/private/model.bin"] > 40 * MIB)
    hub.revoke(GOOD["token"])
    hub.expire_urls()
    assert answer_of(first)[0] is grpc.StatusCode.UNAUTHENTICATED
    hub.faults.rate = None

    assert machine.inline("second", {"repoId": "org/copy"}) == (OK, "")
    assert (machine.target("second") / "model.bin").read_bytes() == file.read_bytes()
    assert hub.counters.bytes_sent["org/copy/model.bin"] < 96 * MIB, (
        "what the other repository gave is not fetched again"
    )
    assert machine.unpublish("second") == (OK, "")
