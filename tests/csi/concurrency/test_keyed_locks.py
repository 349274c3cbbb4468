"""Locks by name that never wait."""

from __future__ import annotations

import threading
import time

import pytest

from csi.concurrency.keyed_locks import KeyedLocks
from csi.errors import Busy


def test_a_key_that_is_held_is_refused_at_once_and_others_are_not() -> None:
    locks = KeyedLocks()
    with (
        locks.acquire("a"),
        locks.acquire("b"),
        pytest.raises(Busy, match="working on a"),
        locks.acquire("a"),
    ):
        pass
    with locks.acquire("a"):
        pass


def test_a_key_is_free_again_after_a_failure() -> None:
    locks = KeyedLocks()
    with pytest.raises(ValueError), locks.acquire("a"):
        raise ValueError
    with locks.acquire("a"):
        pass


def test_of_many_threads_one_at_a_time_holds_a_key() -> None:
    locks, inside, most, refused = KeyedLocks(), 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def work() -> None:
        nonlocal inside, most, refused
        start.wait()
        for _ in range(200):
            try:
                with locks.acquire("key"):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
            except Busy:
                with guard:
                    refused += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert refused < 8 * 200


def test_who_may_wait_gets_the_lock_when_it_is_free() -> None:
    locks, held = KeyedLocks(), threading.Event()
    released: list[bool] = []

    def hold() -> None:
        with locks.acquire("a"):
            held.set()
            time.sleep(0.1)
            released.append(True)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with locks.acquire("a", 30):
        assert released
    holder.join()


def test_who_waits_in_vain_is_told() -> None:
    locks = KeyedLocks()
    with locks.acquire("a"), pytest.raises(Busy), locks.acquire("a", 0.05):
        pass
