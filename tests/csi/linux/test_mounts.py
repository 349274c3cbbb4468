"""Many calls that ask for the mount table at once share what is read, and none gets what was read before
it asked."""

from __future__ import annotations

import queue
import threading

import pytest

from csi.linux.mounts import KernelMountTable, Mount
from tests.origins.onc_rpc import wait_until


class Slow(KernelMountTable):
    """Each read waits until it may end with what `may_end` has for it: a source that tells one read from
    the next, or what it fails with."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_end = 0, queue.SimpleQueue[str | OSError]()

    def _read_mountinfo(self) -> list[Mount]:
        self.begun += 1
        said = self.may_end.get(timeout=20)
        if isinstance(said, OSError):
            raise said
        return [Mount("/", "0:1", "ext4", said, frozenset())]


def asked(mounts: KernelMountTable, answers: queue.SimpleQueue[object]) -> threading.Thread:
    def ask() -> None:
        try:
            answers.put(mounts.list_mounts()[0].source)
        except OSError as error:
            answers.put(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_who_asks_while_one_reads_gets_the_next_read_together_with_the_others() -> None:
    mounts, first, later = Slow(), queue.SimpleQueue[object](), queue.SimpleQueue[object]()
    threads = [asked(mounts, first)]
    assert wait_until(lambda: mounts.begun == 1, 20)
    threads += [asked(mounts, later) for _ in range(20)]
    assert wait_until(lambda: len(mounts._changed._waiters) == 20, 20)  # type: ignore[attr-defined]
    mounts.may_end.put("before")
    assert first.get(timeout=20) == "before"
    assert wait_until(lambda: mounts.begun == 2, 20)
    mounts.may_end.put("after")
    assert {later.get(timeout=20) for _ in range(20)} == {"after"}
    for thread in threads:
        thread.join()
    assert mounts.begun == 2


def test_a_read_that_fails_is_its_callers_and_others_read_again() -> None:
    mounts, first, later = Slow(), queue.SimpleQueue[object](), queue.SimpleQueue[object]()
    threads = [asked(mounts, first)]
    assert wait_until(lambda: mounts.begun == 1, 20)
    threads.append(asked(mounts, later))
    mounts.may_end.put(OSError("no"))
    assert isinstance(first.get(timeout=20), OSError)
    mounts.may_end.put("again")
    assert later.get(timeout=20) == "again"
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("calls", [1, 50])
def test_the_table_is_the_kernels(calls: int) -> None:
    mounts, found = KernelMountTable(), queue.SimpleQueue[object]()
    threads = [
        threading.Thread(target=lambda: found.put({mount.target for mount in mounts.list_mounts()}))
        for _ in range(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("/" in found.get(timeout=20) for _ in range(calls))  # type: ignore[operator]
