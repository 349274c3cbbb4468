"""Who may have an image that is on the node already: only a credential that reads from the origin, or did
while it could be asked."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from tests.kernel.conftest import Start
from tests.kernel.machine import MIB, Machine, content, until
from tests.kernel.requests import OK, Answer, answer_of
from tests.kernel.traces import leaks
from tests.origins.hub import Hub
from tests.origins.repositories import Repository

pytestmark = pytest.mark.kernel

WHO, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
MISSING, UNAVAILABLE = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE
PRIVATE, GATED = {"repoId": "org/private"}, {"repoId": "org/gated"}
GOOD, SECOND, STRANGER, WRONG = (
    {"token": f"{name}-s3cr3t"} for name in ("good", "second", "stranger", "wrong")
)
# How long a proof counts without asking again, in the tests that wait for its end.
TTL = 1.0


@pytest.fixture
def private(hub: Hub) -> Repository:
    """A private and a gated repository, which `GOOD` and `SECOND` may read; `STRANGER` is another user."""
    readers = {GOOD["token"], SECOND["token"]}
    hub.repo("org/gated", {"config.json": b"{}"}, gated=True, granted=readers)
    repository = hub.repo("org/private", {"config.json": b"{}"}, private=True, tokens=readers)
    hub.tokens[STRANGER["token"]] = "stranger"
    return repository


def cached(machine: Machine, attributes: dict[str, str]) -> None:
    """The image is on the node, and nothing shows it."""
    assert machine.inline("first", attributes, GOOD) == (OK, "")
    assert machine.unpublish("first") == (OK, "")
    assert len(machine.sealed()) == 1
    assert machine.mounts() == []


def refused(machine: Machine, answer: Answer, code: grpc.StatusCode, words: str) -> None:
    """The answer is this, and nothing was shown."""
    assert answer[0] is code, answer
    assert words in answer[1], answer
    assert machine.mounts() == []
    assert machine.half_made() == []
    assert leaks(machine, "s3cr3t", answer[1]) == []


def test_a_cached_private_image_is_not_handed_to_a_wrong_or_missing_token(
    start: Start, private: Repository
) -> None:
    machine = start()
    cached(machine, PRIVATE)
    refused(machine, machine.inline("pod", PRIVATE), WHO, "give a token in a Secret")
    refused(machine, machine.inline("pod", PRIVATE, WRONG), WHO, "refuses the token")
    refused(machine, machine.inline("pod", PRIVATE, STRANGER), MISSING, "this token may not see it")
    assert machine.inline("pod", PRIVATE, SECOND) == (OK, "")


def test_a_persistent_volume_is_staged_with_its_own_token_alone(start: Start, private: Repository) -> None:
    machine = start()
    volume = machine.create("volume", PRIVATE, GOOD)
    assert machine.stage(volume, GOOD) == (OK, "")
    assert machine.unstage(volume.volume_id) == (OK, "")
    refused(machine, machine.stage(volume), WHO, "give a token in a Secret")
    refused(machine, machine.stage(volume, WRONG), WHO, "refuses the token")
    assert machine.stage(volume, SECOND) == (OK, "")


def test_a_pod_author_cannot_name_the_image_of_another(start: Start, private: Repository) -> None:
    machine = start()
    cached(machine, PRIVATE)
    digest = machine.images()[0].name
    refused(
        machine,
        machine.inline("pod", {**PRIVATE, "manifestDigest": digest}, GOOD),
        grpc.StatusCode.INVALID_ARGUMENT,
        "manifestDigest",
    )


@pytest.mark.parametrize("asked", ["branch", "commit"])
def test_a_revoked_token_is_refused_and_its_proofs_are_gone(
    start: Start, hub: Hub, private: Repository, asked: str
) -> None:
    """Whatever revision the refusal was heard for: with the origin down, what the token had proven counts
    no more."""
    machine = start("--proof-ttl", f"{TTL}s")
    cached(machine, PRIVATE)
    pinned = {**PRIVATE, "revision": private.branches["main"]}
    hub.revoke(GOOD["token"])
    time.sleep(TTL)
    refused(machine, machine.inline("pod", PRIVATE if asked == "branch" else pinned, GOOD), WHO, "revoked")
    hub.stop()
    for attributes in (PRIVATE, pinned):
        refused(machine, machine.inline("pod", attributes, GOOD), UNAVAILABLE, "127.0.0.1")


def test_a_gated_repository_that_lists_but_cannot_be_read_is_refused(
    start: Start, private: Repository
) -> None:
    machine = start()
    cached(machine, GATED)
    refused(machine, machine.inline("pod", GATED, STRANGER), DENIED, "is gated")
    refused(machine, machine.inline("pod", GATED), DENIED, "is gated")
    assert machine.inline("pod", GATED, SECOND) == (OK, "")


def test_with_the_origin_down_only_what_was_proven_mounts(
    start: Start, hub: Hub, private: Repository
) -> None:
    machine = start("--proof-ttl", f"{TTL}s")
    volume = machine.create("volume", PRIVATE, GOOD)
    assert machine.stage(volume, GOOD) == (OK, "")
    assert machine.unstage(volume.volume_id) == (OK, "")
    cached(machine, PRIVATE)
    hub.stop()
    time.sleep(TTL)

    refused(machine, machine.inline("unproven", PRIVATE, SECOND), UNAVAILABLE, "127.0.0.1")
    refused(machine, machine.stage(volume, SECOND), UNAVAILABLE, "127.0.0.1")
    assert machine.stage(volume, GOOD) == (OK, "")
    assert machine.publish(volume, "pod") == (OK, "")
    assert machine.inline("inline", PRIVATE, GOOD) == (OK, "")
    assert (machine.target("inline") / "config.json").read_bytes() == b"{}"
    assert machine.logged("origin unreachable, using an earlier proof")


def test_what_was_proven_outlives_the_plugin(start: Start, hub: Hub, private: Repository) -> None:
    machine = start("--proof-ttl", f"{TTL}s")
    cached(machine, PRIVATE)
    hub.stop()
    assert machine.plugins.node.stop() == 0
    time.sleep(TTL)
    machine.restart_node()
    assert machine.inline("pod", PRIVATE, GOOD) == (OK, "")


def test_after_the_grace_what_was_proven_counts_no_more(start: Start, hub: Hub, private: Repository) -> None:
    machine = start("--proof-ttl", f"{TTL}s", "--offline-grace", f"{2 * TTL}s")
    cached(machine, PRIVATE)
    hub.stop()
    time.sleep(2 * TTL)
    refused(machine, machine.inline("pod", PRIVATE, GOOD), UNAVAILABLE, "127.0.0.1")
    hub.start()
    assert machine.inline("pod", PRIVATE, GOOD) == (OK, "")


def test_a_fill_whose_token_is_revoked_fails_for_that_token_alone(
    start: Start, hub: Hub, tmp_path: Path
) -> None:
    size = 192 * MIB
    hub.repo(
        "org/large",
        {"model.bin": content(tmp_path / "large", size)},
        private=True,
        tokens={GOOD["token"], SECOND["token"]},
    )
    machine = start("--fill-connections", "4")
    hub.faults.rate = 24e6
    first = machine.inline_soon("first", {"repoId": "org/large"}, GOOD)
    assert until(lambda: hub.counters.bytes_sent["org/large/model.bin"] > 8 * MIB)
    second = machine.inline_soon("second", {"repoId": "org/large"}, SECOND)
    assert until(lambda: f"Bearer {SECOND['token']}" in hub.counters.authorizations["hub"])
    hub.revoke(GOOD["token"])
    hub.expire_urls()

    code, message = answer_of(first)
    assert code is WHO
    assert "revoked" in message
    hub.faults.rate = None
    assert answer_of(second) == (OK, "")
    assert machine.unpublish("second") == (OK, "")
    assert machine.half_made() == []
    assert leaks(machine, "s3cr3t", message) == []
