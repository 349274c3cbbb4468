"""A fill held to a number of bytes per second, whatever it reads from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from csi.pace import Pace
from csi.spec.access import OpenReader, Reader
from csi.spec.manifest import Entry


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
