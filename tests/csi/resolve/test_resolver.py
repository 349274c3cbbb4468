"""One resolve for all who ask the same; work that outlives a call; what counts while an origin is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi.concurrency import single_flight
from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import (
    Busy,
    DataCacheError,
    OriginThrottled,
    OriginUnavailable,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
)
from csi.manifest.manifest import Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.parameters.dialects.hub import HubSpec
from csi.parameters.dialects.nas import NasSpec
from csi.resolve.proof_memory import ProofMemory
from csi.resolve.resolver import Resolver
from csi.worker.operations import Operation, ResolveSource
from csi.worker.pool import WorkerCall
from csi.worker.results import Resolution
from tests.csi.worker.in_process import COMMITS, InProcess

MAIN = CacheSpec(HubSpec("HuggingFace/Model", "org/name", "main"))
NAS = CacheSpec(NasSpec("nas", "/models"))
TOKEN = Secrets({"token": "right"})


class FakeManifests:
    """A store of manifests in memory, which may forget them or fail to take one."""

    def __init__(self, temp: Path) -> None:
        self.temp = temp
        self.error: Exception | None = None
        self.by_digest: dict[str, Manifest] = {}

    def has_manifest(self, digest: str) -> bool:
        return digest in self.by_digest

    def read_manifest(self, digest: str) -> Manifest:
        return self.by_digest[digest]

    def new_temp_path(self) -> Path:
        return self.temp

    def adopt_manifest(self, digest: str, temp: Path, image_bytes: int) -> None:
        if self.error:
            raise self.error
        with temp.open("rb") as stream:
            self.by_digest[digest] = Manifest.read(stream)


class Setting:
    """A resolver over one origin, with a clock."""

    def __init__(self, folder: Path, ask_moving: bool, seats: int = 9) -> None:
        self.origin, self.now = InProcess(), time.time()
        self.proofs = ProofMemory(folder / "proofs", b"k" * 32, 600.0, 86400.0, lambda: self.now)
        self.room = WaitLimiter(seats)
        self.manifests = FakeManifests(folder / "scratch")
        self.resolver = Resolver(
            self.origin,  # type: ignore[arg-type]
            self.proofs,
            self.room,
            refresh_moving=ask_moving,
            manifests=self.manifests,
        )

    def resolve(
        self, spec: CacheSpec = MAIN, secrets: Secrets = TOKEN, seconds: float = 30, **more: object
    ) -> Resolution:
        return self.resolver.resolve("vol", spec, secrets, Deadline(seconds), **more)  # type: ignore[arg-type]


@pytest.fixture
def creating(tmp_path: Path) -> Setting:
    """As the controller has it: what can move is asked for anew."""
    return Setting(tmp_path, ask_moving=True)


@pytest.fixture
def mounting(tmp_path: Path) -> Setting:
    """As a node has it: a fresh proof answers."""
    return Setting(tmp_path, ask_moving=False)


def flights_of(setting: Setting) -> dict[str, Any]:
    """The resolves that run, or whose error waits for the next caller."""
    return setting.resolver._flights._flights


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and not holds():
        time.sleep(0.005)
    return holds()


def test_errors_that_nobody_came_back_for_are_let_go(
    creating: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_flight, "_ERROR_TTL", -1.0)
    creating.origin.error = OriginUnavailable("away")
    for number in range(5):
        creating.origin.go.clear()
        with pytest.raises(Busy):
            creating.resolve(secrets=Secrets({"token": str(number)}), seconds=0.05)
        creating.origin.go.set()
        assert eventually(lambda: all(flight.ended_at for flight in flights_of(creating).values()))
    assert len(flights_of(creating)) <= 1


def all_at_once(count: int, work: Callable[[], object]) -> list[object]:
    answers: list[object] = []

    def run() -> None:
        try:
            answers.append(work())
        except DataCacheError as error:
            answers.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def test_a_moving_source_is_pinned_then_resolved(creating: Setting) -> None:
    found = creating.resolve()
    assert creating.origin.operations == ["pin-source", "resolve-source"]
    assert found.spec.source.revision == COMMITS[0]  # type: ignore[union-attr]
    assert all(operation.secrets == TOKEN for operation in creating.origin.asked)


def test_all_who_ask_the_same_with_the_same_credential_share_one_resolve(creating: Setting) -> None:
    creating.origin.go.clear()
    threading.Timer(0.2, creating.origin.go.set).start()
    answers = all_at_once(8, creating.resolve)
    assert len(answers) == 8
    assert len(set(map(repr, answers))) == 1
    assert isinstance(answers[0], Resolution)
    assert creating.origin.operations.count("resolve-source") <= 2


def test_another_credential_asks_for_itself(creating: Setting) -> None:
    creating.resolve()
    creating.resolve(secrets=Secrets({"token": "other"}))
    creating.resolve(secrets=Secrets())
    assert creating.origin.operations.count("resolve-source") == 3


def test_a_volume_is_created_from_what_a_branch_is_now_at_the_price_of_one_question(
    creating: Setting,
) -> None:
    first = creating.resolve()
    assert creating.resolve() == first
    assert creating.origin.operations == ["pin-source", "resolve-source", "pin-source"]
    creating.origin.commit = COMMITS[1]
    assert creating.resolve().digest == creating.origin.digest
    assert creating.origin.operations[2:] == ["pin-source", "pin-source", "resolve-source"]


def test_a_nas_is_looked_at_anew_for_each_volume_that_is_created(creating: Setting) -> None:
    creating.resolve(NAS)
    creating.resolve(NAS)
    assert creating.origin.operations == ["resolve-source", "resolve-source"]


@pytest.mark.parametrize("spec", [MAIN, NAS], ids=["hub", "nas"])
def test_a_volume_is_mounted_by_a_fresh_proof_without_a_question(mounting: Setting, spec: CacheSpec) -> None:
    mounting.resolve(spec)
    before = len(mounting.origin.asked)
    mounting.resolve(spec)
    assert len(mounting.origin.asked) == before
    mounting.now += 600
    mounting.resolve(spec)
    assert len(mounting.origin.asked) > before


def test_what_was_proven_of_a_branch_is_proven_of_its_commit(mounting: Setting) -> None:
    pinned = mounting.resolve().spec
    before = len(mounting.origin.asked)
    mounting.resolve(pinned)
    assert len(mounting.origin.asked) == before


def test_a_proof_without_the_manifest_at_hand_asks_again_and_keeps_the_manifest(mounting: Setting) -> None:
    mounting.resolve()
    mounting.manifests.by_digest.clear()
    mounting.resolve()
    assert list(mounting.manifests.by_digest) == [mounting.origin.digest]
    assert not mounting.manifests.temp.exists()


def test_a_manifest_that_cannot_be_kept_leaves_nothing_behind(mounting: Setting) -> None:
    mounting.manifests.error = OriginUnavailable("disk full, say")
    with pytest.raises(OriginUnavailable):
        mounting.resolve()
    assert not mounting.manifests.temp.exists()


def test_another_manifest_than_the_expected_one_is_told_with_the_difference_and_not_kept(
    mounting: Setting,
) -> None:
    before = mounting.resolve(NAS)
    mounting.origin.files["more.bin"] = 7
    with pytest.raises(SourceChanged, match=r"nas:/models has changed .*more\.bin"):
        mounting.resolve(NAS, secrets=Secrets({"token": "other"}), expected_digest=before.digest)
    assert list(mounting.manifests.by_digest) == [before.digest]


def test_a_call_whose_time_is_over_hears_busy_and_the_next_one_finds_the_work_done(creating: Setting) -> None:
    creating.origin.go.clear()
    with pytest.raises(Busy, match="still resolving HuggingFace/Model org/name@main"):
        creating.resolve(seconds=0.05)
    with pytest.raises(Busy):
        creating.resolve(seconds=0.05)
    creating.origin.go.set()
    assert creating.resolve().digest == creating.origin.digest
    assert creating.origin.operations.count("resolve-source") == 1


def test_an_error_that_nobody_waited_for_is_told_to_the_next_caller_once(creating: Setting) -> None:
    creating.origin.go.clear()
    creating.origin.error = SourceNotFound("no such repository")
    with pytest.raises(Busy):
        creating.resolve(seconds=0.05)
    creating.origin.go.set()
    assert eventually(lambda: any(flight.ended_at for flight in flights_of(creating).values()))
    asked, creating.origin.error = len(creating.origin.asked), None
    with pytest.raises(SourceNotFound):
        creating.resolve()
    assert len(creating.origin.asked) == asked
    assert creating.resolve().digest == creating.origin.digest


def test_an_old_error_is_told_to_nobody(creating: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    creating.origin.go.clear()
    creating.origin.error = SourceNotFound("no such repository")
    with pytest.raises(Busy):
        creating.resolve(seconds=0.05)
    creating.origin.go.set()
    assert eventually(lambda: any(flight.ended_at for flight in flights_of(creating).values()))
    creating.origin.error = None
    monkeypatch.setattr(single_flight, "_ERROR_TTL", -1.0)
    assert creating.resolve().digest == creating.origin.digest


def test_a_resolve_that_nobody_comes_back_for_is_stopped_and_the_next_call_begins_anew(
    creating: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating.resolver._flights, "_abandoned_timeout", 0.05)
    creating.origin.go.clear()
    with pytest.raises(Busy, match="still resolving"):
        creating.resolve(seconds=0.05)
    assert eventually(lambda: not flights_of(creating))
    creating.origin.go.set()
    assert creating.resolve().digest == creating.origin.digest


def test_a_resolve_that_somebody_waits_for_goes_on(
    creating: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating.resolver._flights, "_abandoned_timeout", 0.2)
    creating.origin.go.clear()
    with pytest.raises(Busy):
        creating.resolve(seconds=0.01)
    threading.Timer(0.5, creating.origin.go.set).start()
    assert creating.resolve().digest == creating.origin.digest
    assert creating.origin.operations == ["pin-source", "resolve-source"]


def test_a_cancelled_call_says_why_it_ended(creating: Setting) -> None:
    creating.origin.go.clear()
    threading.Timer(0.1, lambda: creating.room.cancel("vol", "the volume is being unpublished")).start()
    with pytest.raises(Busy, match="being unpublished"):
        creating.resolve()
    creating.origin.go.set()


def test_a_call_without_a_seat_is_answered_at_once(tmp_path: Path) -> None:
    full = Setting(tmp_path, ask_moving=True, seats=0)
    with pytest.raises(Busy, match="0 calls are waiting already"):
        full.resolve()
    assert full.origin.asked == []


@pytest.mark.parametrize("away", [OriginUnavailable("down"), OriginThrottled("patience", 5.0)])
@pytest.mark.parametrize("spec", [MAIN, NAS], ids=["hub", "nas"])
def test_while_the_origin_is_away_what_was_proven_still_counts_for_the_grace(
    mounting: Setting, spec: CacheSpec, away: Exception
) -> None:
    found = mounting.resolve(spec)
    mounting.origin.error = away
    mounting.now += 3600
    assert mounting.resolve(spec) == found
    with pytest.raises(type(away)):
        mounting.resolve(spec, expected_digest="0" * 64)
    with pytest.raises(type(away)):
        mounting.resolve(spec, Secrets({"token": "wrong"}))
    mounting.now += 86400
    with pytest.raises(type(away)):
        mounting.resolve(spec)


@pytest.mark.parametrize("refusal", [Unauthenticated, PermissionDenied, SourceNotFound])
def test_a_refusal_forgets_what_was_proven_of_branch_and_commit(
    mounting: Setting, refusal: type[DataCacheError]
) -> None:
    pinned = mounting.resolve().spec
    mounting.now += 600
    real_call = mounting.origin.call

    def refused_after_pin(lane: str, operation: Operation[object], call: WorkerCall) -> object:
        answer = real_call(lane, operation, call)
        if isinstance(operation, ResolveSource):
            raise refusal("the token was revoked")
        return answer

    mounting.origin.call = refused_after_pin  # type: ignore[method-assign]
    with pytest.raises(refusal):
        mounting.resolve()
    assert (
        mounting.proofs.find_within_grace(TOKEN, MAIN)
        is mounting.proofs.find_within_grace(TOKEN, pinned)
        is None
    )
    mounting.origin.call = real_call  # type: ignore[method-assign]
    mounting.origin.error = OriginUnavailable("down")
    for spec in (MAIN, pinned):
        with pytest.raises(OriginUnavailable):
            mounting.resolve(spec)


def test_a_fault_of_the_driver_reaches_the_caller(creating: Setting) -> None:
    creating.origin.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        creating.resolve()
