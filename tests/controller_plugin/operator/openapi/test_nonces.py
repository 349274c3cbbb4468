"""Marks of requests: one suite for those of a process, of a file, and of a Secret of a real API server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controller_plugin.operator.openapi import nonces
from controller_plugin.operator.openapi.deletions import Deletions, TokenReused
from controller_plugin.operator.openapi.nonces import (
    FileNonceStore,
    MemoryNonceStore,
    NonceStore,
    SecretNonceStore,
)
from csi.errors import DataCacheError
from tests.apiserver import ApiServer

NOW = 2e9
Opens = Callable[[], NonceStore]


@pytest.fixture(params=["memory", "file", "secret"])
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Opens:
    """Opens the same marks again and again, as replicas and later processes do; those of memory once."""
    if request.param == "file":
        return lambda: FileNonceStore(tmp_path / "nonces.json", 100.0)
    if request.param == "memory":
        made = MemoryNonceStore(100.0)
        return lambda: made
    server: ApiServer = request.getfixturevalue("api_server")
    name = f"nonces-{uuid.uuid4().hex[:8]}"
    return lambda: SecretNonceStore(server.client(), name, 100.0)


def test_a_mark_is_new_once_whoever_is_asked(opens: Opens) -> None:
    one, other = opens(), opens()
    assert [
        one.use("a", NOW),
        other.use("b", NOW),
        other.use("a", NOW + 1),
        one.use("b", NOW + 1),
        one.use("c", NOW),
    ] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_whether_a_mark_is_used_is_known_to_all_and_does_not_use_it(opens: Opens) -> None:
    one, other = opens(), opens()
    assert other.find_used(["a", "b"], NOW) == set()
    assert one.use("a", NOW)
    assert other.find_used(["a", "b"], NOW + 99) == {"a"}
    assert other.find_used(["a", "b"], NOW + 101) == set()


def test_a_deletion_is_known_to_every_replica_with_its_token(opens: Opens) -> None:
    one, other = Deletions(opens(), lambda: NOW), Deletions(opens(), lambda: NOW)
    target = ("edc-1", "", "")
    assert not other.has_deleted("token", target)
    one.remember("token", target)
    assert other.has_deleted("token", target)
    with pytest.raises(TokenReused):
        other.has_deleted("token", ("edc-2", "", ""))
    assert not other.has_deleted("another token", target)


def test_a_mark_is_forgotten_when_no_request_can_have_it(opens: Opens) -> None:
    marks = opens()
    assert marks.use("a", NOW)
    assert marks.use("b", NOW + 101)
    assert marks.use("a", NOW + 102)


def test_of_two_who_use_a_mark_at_once_one_has_it(opens: Opens) -> None:
    marks, start = opens(), threading.Barrier(4)

    def use(number: int) -> list[bool]:
        start.wait()
        return [marks.use(f"mark-{mark}", NOW) for mark in range(5)]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(use, range(4)))
    assert [sum(one[mark] for one in found) for mark in range(5)] == [1] * 5


def test_no_more_marks_are_kept_than_fit(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "_MAX_STORED", 3)
    marks = opens()
    if isinstance(marks, MemoryNonceStore):
        marks = MemoryNonceStore(100.0, capacity=3)
    assert all(marks.use(f"mark-{number}", NOW + number) for number in range(5))
    assert not marks.use("mark-4", NOW + 5)
    assert marks.use("mark-0", NOW + 6)


def test_a_secret_that_somebody_has_spoilt_is_told_of(api_server: ApiServer) -> None:
    api_server.kubectl("create", "secret", "generic", "spoilt-nonces", "--from-literal=marks=[]")
    with pytest.raises(DataCacheError, match="spoilt-nonces does not hold request nonces; delete it"):
        SecretNonceStore(api_server.client(), "spoilt-nonces", 100.0).use("a", NOW)
