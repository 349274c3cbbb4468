"""A fill held to a number of bytes per second, whatever it reads from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from csi.spec.access import OpenReader, Reader
from csi.spec.manifest import Entry

# What a reader that was held up may catch up with.
_SAVED_SECONDS = 0.05


class Pace:
    """`rate` bytes per second for all who take from it. Thread-safe."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._guard = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> None:
        """Return when `count` more bytes may be read."""
        with self._guard:
            start = max(self._free_at, self._clock() - _SAVED_SECONDS)
            self._free_at = start + count / self._rate
            wait = self._free_at - self._clock()
        if wait > 0:
            self._sleep(wait)


def paced(open_reader: OpenReader, rate: int | None) -> OpenReader:
    """`open_reader`, whose readers together read at most `rate` bytes per second (None: as it is)."""
    if rate is None:
        return open_reader
    pace = Pace(rate)
    return lambda: _opened(open_reader, pace)


@contextmanager
def _opened(open_reader: Callable[[], AbstractContextManager[Reader]], pace: Pace) -> Iterator[Reader]:
    with open_reader() as reader:
        yield _PacedReader(reader, pace)


class _PacedReader:
    def __init__(self, inner: Reader, pace: Pace) -> None:
        self._inner, self._pace = inner, pace

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        self._pace.take(len(buffer))
        self._inner.read_into(entry, offset, buffer)
