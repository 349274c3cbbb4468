"""A fill held to a number of bytes per second, whatever it reads from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType

from csi.concurrency.rate_limit import Pace
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader, Reader


def paced(open_reader: OpenReader, rate: int | None, folders: Mapping[str, int] = MappingProxyType({})) -> OpenReader:
    """`open_reader`, whose readers together read at most `rate` bytes per second (None: no limit), and so many of each top folder in `folders`."""
    if rate is None and not folders:
        return open_reader
    every = None if rate is None else Pace(rate)
    own = {folder: Pace(limit) for folder, limit in folders.items()}
    return lambda: _opened(open_reader, every, own)


@contextmanager
def _opened(open_reader: Callable[[], AbstractContextManager[Reader]], every: Pace | None, own: Mapping[str, Pace]) -> Iterator[Reader]:
    with open_reader() as reader:
        yield _PacedReader(reader, every, own)


class _PacedReader:
    def __init__(self, inner: Reader, every: Pace | None, own: Mapping[str, Pace]) -> None:
        self._inner, self._every, self._own = inner, every, own

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        paces = [pace for pace in (self._own.get(entry.path.partition("/")[0]), self._every) if pace is not None]
        if paces:
            paces[0].take(len(buffer), *paces[1:])
        self._inner.read_into(entry, offset, buffer)
