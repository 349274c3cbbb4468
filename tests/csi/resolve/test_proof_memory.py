"""What was proven, for how long it counts, and who can read it."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.resolve.proof_memory import ProofMemory
from csi.worker.results import Resolution

KEY = b"k" * 32
SPEC = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main"))
PINNED = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "0123456789abcdef0123456789abcdef01234567"))
FOUND = Resolution(PINNED, "a" * 64, 100, 8192, 3, 1)
TOKEN = Secrets({"token": "hf_verySecret123"})
TTL, GRACE = 600.0, 7 * 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def proofs(tmp_path: Path, clock: Clock) -> ProofMemory:
    return ProofMemory(tmp_path / "proofs", KEY, TTL, GRACE, clock)


def test_what_was_proven_is_fresh_for_ten_minutes_and_lasts_for_the_grace(
    proofs: ProofMemory, clock: Clock
) -> None:
    assert proofs.find_fresh(TOKEN, SPEC) is proofs.find_within_grace(TOKEN, SPEC) is None
    proofs.remember(TOKEN, SPEC, FOUND)
    assert proofs.find_fresh(TOKEN, SPEC) == proofs.find_within_grace(TOKEN, SPEC) == FOUND
    clock.now += TTL
    assert proofs.find_fresh(TOKEN, SPEC) is None
    assert proofs.find_within_grace(TOKEN, SPEC) == FOUND
    clock.now += GRACE - TTL
    assert proofs.find_within_grace(TOKEN, SPEC) is None


def test_remembering_anew_begins_anew(proofs: ProofMemory, clock: Clock) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    clock.now += TTL
    proofs.remember(TOKEN, SPEC, FOUND)
    assert proofs.find_fresh(TOKEN, SPEC) == FOUND


def test_a_clock_that_goes_back_makes_no_proof_out_of_the_future(proofs: ProofMemory, clock: Clock) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    clock.now -= 1
    assert proofs.find_fresh(TOKEN, SPEC) is proofs.find_within_grace(TOKEN, SPEC) is None


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"token": ""},
        {"token": "hf_verySecret124"},
        {"accessToken": "hf_verySecret123"},
        {"token": "hf_verySecret123", "x": "y"},
    ],
)
def test_another_credential_has_proven_nothing(proofs: ProofMemory, other: dict[str, str]) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    secrets = Secrets(other)
    assert proofs.find_fresh(secrets, SPEC) is proofs.find_within_grace(secrets, SPEC) is None


@pytest.mark.parametrize(
    "other",
    [
        PINNED,
        CacheSpec(SPEC.source, True),
        CacheSpec(HubSpec("HuggingFace/DataSet", "org/name")),
        CacheSpec(NasSpec("nas", "/x")),
    ],
)
def test_another_spec_is_not_proven_by_this_one(proofs: ProofMemory, other: CacheSpec) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    assert proofs.find_fresh(TOKEN, other) is None


def test_the_order_of_a_secrets_keys_makes_no_difference(proofs: ProofMemory) -> None:
    assert proofs.get_key(Secrets({"a": "1", "b": "2"}), SPEC) == proofs.get_key(
        Secrets({"b": "2", "a": "1"}), SPEC
    )


def test_a_refusal_forgets_and_forgetting_nothing_is_no_error(proofs: ProofMemory) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    proofs.forget(TOKEN, SPEC)
    proofs.forget(TOKEN, SPEC)
    assert proofs.find_within_grace(TOKEN, SPEC) is None


def test_proofs_outlive_the_plugin_but_not_their_key(
    tmp_path: Path, proofs: ProofMemory, clock: Clock
) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    assert ProofMemory(tmp_path / "proofs", KEY, TTL, GRACE, clock).find_fresh(TOKEN, SPEC) == FOUND
    assert ProofMemory(tmp_path / "proofs", b"other" * 8, TTL, GRACE, clock).find_fresh(TOKEN, SPEC) is None


def test_the_folder_is_for_its_owner_and_tells_neither_credential_nor_guess(
    tmp_path: Path, proofs: ProofMemory
) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    folder = tmp_path / "proofs"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.name == proofs.get_key(TOKEN, SPEC)
    assert len(path.name) == 64
    assert TOKEN.values["token"] not in path.read_text() + path.name
    # A hash without a key could be tried against guesses.
    assert (
        ProofMemory(tmp_path / "other", b"another key here".ljust(32), TTL, GRACE).get_key(TOKEN, SPEC)
        != path.name
    )


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b'{"format": 1}', b'{"format": 2, "time": 0}', b'{"format": 1, "time": "x", "found": {}}'],
)
def test_a_damaged_proof_proves_nothing(tmp_path: Path, proofs: ProofMemory, damage: bytes) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    (path,) = (tmp_path / "proofs").iterdir()
    path.write_bytes(damage)
    assert proofs.find_within_grace(TOKEN, SPEC) is None


def test_proofs_that_nobody_can_use_any_more_are_removed_at_the_start(
    tmp_path: Path, proofs: ProofMemory, clock: Clock
) -> None:
    proofs.remember(TOKEN, SPEC, FOUND)
    proofs.remember(Secrets(), SPEC, FOUND)
    old, young = (tmp_path / "proofs" / proofs.get_key(secrets, SPEC) for secrets in (TOKEN, Secrets()))
    os.utime(old, (clock.now - GRACE - 1,) * 2)
    os.utime(young, (clock.now - GRACE + 60,) * 2)
    ProofMemory(tmp_path / "proofs", KEY, TTL, GRACE, clock)
    assert not old.exists()
    assert young.exists()
