"""A branch that means a commit which was proven already needs no question after the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.parameters.dialects.hub import HubSpec
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.worker.operations import Operation, PinSource
from csi.worker.results import Resolution

COMMIT = "a" * 40
MAIN, PINNED = (
    CacheSpec(HubSpec("HuggingFace/Model", "org/name", revision)) for revision in ("main", COMMIT)
)
FOUND = Resolution(PINNED, "a" * 64, 10, 4096, 1, 0)
TTL = 600.0


class Clock:
    now = 2_000_000_000.0

    def __call__(self) -> float:
        return self.now


class Pool:
    """In the place of a WorkerPool: answers, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def call(self, lane: str, operation: Operation[object], call: object) -> object:
        self.asked.append(operation.name)
        return PINNED if isinstance(operation, PinSource) else FOUND


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def resolve(tmp_path: Path, clock: Clock, pool: Pool) -> Callable[[CacheSpec], Resolution]:
    proofs = ProofMemory(tmp_path / "proofs", b"k" * 32, TTL, 86400.0, clock)
    resolver = Resolver(pool, proofs, WaitLimiter(4), refresh_moving=False)  # type: ignore[arg-type]
    return lambda spec: resolver.resolve("vol", spec, Secrets(), Deadline(30))


def test_a_branch_of_a_proven_commit_is_asked_for_once(
    resolve: Callable[[CacheSpec], Resolution], pool: Pool
) -> None:
    resolve(PINNED)
    assert [resolve(MAIN) for _ in range(3)] == [FOUND] * 3
    assert pool.asked == ["resolve-source", "pin-source"]


def test_a_shared_proof_lives_no_longer_than_the_first(
    resolve: Callable[[CacheSpec], Resolution], pool: Pool, clock: Clock
) -> None:
    resolve(PINNED)
    clock.now += TTL - 1
    resolve(MAIN)
    clock.now += 2
    resolve(MAIN)
    assert pool.asked == ["resolve-source", "pin-source", "pin-source", "resolve-source"]
