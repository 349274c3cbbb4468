"""A pool that grows with what there is to do, and gives back what it does not need."""

from __future__ import annotations

import threading

import pytest

from csi.concurrency.background import background_thread
from csi.concurrency.thread_pool import ShrinkingPool
from tests.origins.onc_rpc import wait_until


def test_it_grows_up_to_its_most_and_shrinks_to_nothing() -> None:
    pool, hold = ShrinkingPool(3, "calls", idle_seconds=0.05), threading.Event()
    futures = [pool.submit(hold.wait) for _ in range(5)]
    assert wait_until(lambda: sum(future.running() for future in futures) == 3, 30)
    assert pool.size == 3
    hold.set()
    assert all(future.result(30) for future in futures)
    assert wait_until(lambda: pool.size == 0, 30)
    assert pool.submit(lambda: 7).result(30) == 7


def test_a_thread_that_is_idle_takes_the_next_call() -> None:
    pool = ShrinkingPool(4, "calls", idle_seconds=5)
    names = {pool.submit(threading.get_ident).result(30) for _ in range(20) if wait_until(lambda: True, 1)}
    assert len(names) <= 2
    pool.shutdown()
    assert pool.size == 0


def test_it_says_when_it_has_shrunk() -> None:
    shrunk, hold, sizes = threading.Event(), threading.Event(), list[int]()
    pool = ShrinkingPool(
        8, "calls", idle_seconds=0.05, on_shrink=lambda: (sizes.append(pool.size), shrunk.set())
    )
    futures = [pool.submit(hold.wait) for _ in range(8)]
    assert not shrunk.wait(0.2)
    hold.set()
    assert all(future.result(30) for future in futures)
    assert shrunk.wait(30)
    assert wait_until(lambda: pool.size == 0, 30)
    assert sizes[0] <= 2


def test_it_says_so_once_more_when_the_last_ones_have_gone() -> None:
    sizes, most, few = list[int](), threading.Event(), threading.Event()
    pool = ShrinkingPool(16, "calls", idle_seconds=0.05, on_shrink=lambda: sizes.append(pool.size))
    futures = [pool.submit(held.wait) for held in [most] * 12 + [few] * 4]
    assert wait_until(lambda: pool.size == 16, 30)
    most.set()
    assert wait_until(lambda: sizes == [4], 30)
    few.set()
    assert all(future.result(30) for future in futures)
    assert wait_until(lambda: len(sizes) == 2, 30)
    assert sizes[1] <= 1


def test_what_is_raised_is_the_callers_and_ends_no_thread() -> None:
    pool = ShrinkingPool(1, "calls", idle_seconds=5)
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(30)
    assert pool.submit(lambda: pool.size).result(30) == 1
    pool.shutdown()


def test_shutting_down_does_what_waits_or_cancels_it() -> None:
    for cancelled in (False, True):
        pool, hold = ShrinkingPool(1, "calls"), threading.Event()
        first, second = pool.submit(hold.wait), pool.submit(lambda: 1)
        assert wait_until(first.running, 30)
        pool.shutdown(wait=False, cancel_futures=cancelled)
        hold.set()
        pool.shutdown()
        assert first.result(30)
        assert second.cancelled() == cancelled
        with pytest.raises(RuntimeError):
            pool.submit(lambda: 1)


def test_many_at_once_are_all_done_once() -> None:
    pool, done, guard = ShrinkingPool(16, "calls", idle_seconds=0.01), list[int](), threading.Lock()

    def work(number: int) -> None:
        with guard:
            done.append(number)

    for future in [pool.submit(work, number) for number in range(2000)]:
        future.result(10)
    assert sorted(done) == list(range(2000))
    pool.shutdown()


def test_a_thread_beside_a_block_ends_with_it_also_where_the_block_fails() -> None:
    woken, ends = threading.Event(), list[bool]()

    def work(ended: threading.Event) -> None:
        woken.wait(30)
        ends.append(ended.is_set())

    with pytest.raises(ZeroDivisionError), background_thread(work, "work", woken.set):
        assert "work" in {thread.name for thread in threading.enumerate()}
        raise ZeroDivisionError
    assert ends == [True]
    assert "work" not in {thread.name for thread in threading.enumerate()}
