"""One of several replicas leads: on a real API server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from csi.cluster.lease import Lease, holder_identity, leader_election
from csi.errors import ClusterUnavailable
from tests.apiserver import ApiServer
from tests.origins.onc_rpc import wait_until


class Replicas:
    """Who leads now; `most` is how many ever did at once."""

    def __init__(self, cluster: ApiServer) -> None:
        self.cluster, self.name = cluster, f"lease-{uuid.uuid4().hex[:8]}"
        self.leaders: list[str] = []
        self.most, self._guard = 0, threading.Lock()

    @contextmanager
    def lead(self, who: str) -> Iterator[None]:
        with self._guard:
            self.leaders.append(who)
            self.most = max(self.most, len(self.leaders))
        try:
            yield
        finally:
            with self._guard:
                self.leaders.remove(who)

    def lease(self, who: str, held_seconds: int = 45) -> Lease:
        return Lease(self.cluster.client(), self.name, who, held_seconds)

    @contextmanager
    def runs(self, who: str) -> Iterator[None]:
        with leader_election(self.lease(who), lambda: self.lead(who), renew_interval=0.2, renew_deadline=5.0):
            yield


@pytest.fixture
def replicas(api_server: ApiServer) -> Replicas:
    return Replicas(api_server)


def test_of_several_replicas_one_leads_and_when_it_leaves_another_does(replicas: Replicas) -> None:
    with ExitStack() as others:
        with replicas.runs("a"):
            assert wait_until(lambda: replicas.leaders == ["a"], 20)
            for who in ("b", "c"):
                others.enter_context(replicas.runs(who))
        assert wait_until(lambda: len(replicas.leaders) == 1, 20)
        assert replicas.leaders != ["a"]
    assert (replicas.leaders, replicas.most) == ([], 1)
    assert (
        replicas.cluster.kubectl("get", "lease", replicas.name, "-o", "jsonpath={.spec.holderIdentity}") == ""
    )


def test_a_lease_is_held_by_one_and_counted(replicas: Replicas) -> None:
    a, b = replicas.lease("a"), replicas.lease("b")
    assert [a.acquire_or_renew(), b.acquire_or_renew(), a.acquire_or_renew()] == [True, False, True]
    a.release()
    assert [b.acquire_or_renew(), a.acquire_or_renew()] == [True, False]
    assert (
        replicas.cluster.kubectl(
            "get", "lease", replicas.name, "-o", "jsonpath={.spec.holderIdentity} {.spec.leaseTransitions}"
        )
        == "b 1"
    )


def test_a_lease_of_who_died_is_taken_once_it_has_not_changed_for_its_time(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("csi.cluster.lease.time.monotonic", lambda: clock[0])
    dead, next_one = replicas.lease("dead", 30), replicas.lease("next")
    assert dead.acquire_or_renew()
    assert not next_one.acquire_or_renew()
    clock[0] += 29
    assert not next_one.acquire_or_renew()
    assert dead.acquire_or_renew()
    clock[0] += 29
    assert not next_one.acquire_or_renew(), "it was renewed meanwhile"
    clock[0] += 31
    assert next_one.acquire_or_renew()
    assert not dead.acquire_or_renew()


def test_who_cannot_renew_its_lease_stops_leading(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replicas.runs("a"):
        assert wait_until(lambda: replicas.leaders == ["a"], 20)
        with monkeypatch.context() as broken:
            broken.setattr("csi.cluster.lease.Lease.acquire_or_renew", _unavailable)
            assert wait_until(lambda: replicas.leaders == [], 40)
        assert wait_until(lambda: replicas.leaders == ["a"], 20)


def test_who_cannot_begin_to_lead_lets_another_try_and_tries_again(replicas: Replicas) -> None:
    tries = list[str]()

    @contextmanager
    def fails_first() -> Iterator[None]:
        tries.append("a")
        if len(tries) < 3:
            raise ClusterUnavailable("away") if len(tries) == 1 else ValueError("odd")
        with replicas.lead("a"):
            yield

    with leader_election(replicas.lease("a"), fails_first, renew_interval=0.2, renew_deadline=5.0):
        assert wait_until(lambda: len(tries) == 1, 20)
        assert replicas.lease("b").acquire_or_renew() in (
            True,
            False,
        )
        assert wait_until(lambda: replicas.leaders == ["a"], 60)


def _unavailable(lease: Lease) -> bool:
    raise ClusterUnavailable("away")


def test_a_container_that_starts_again_in_its_pod_leads_at_once_and_no_other_replica(
    replicas: Replicas,
) -> None:
    killed, other = holder_identity({"POD_NAME": "operator-a"}), holder_identity({"POD_NAME": "operator-b"})
    assert replicas.lease(killed).acquire_or_renew()
    assert not replicas.lease(other).acquire_or_renew()
    assert replicas.lease(holder_identity({"POD_NAME": "operator-a"})).acquire_or_renew()


def test_without_a_pod_every_process_is_another_one() -> None:
    assert holder_identity({}) != holder_identity({})
    assert holder_identity({"POD_NAME": ""}) != holder_identity({"POD_NAME": ""})
