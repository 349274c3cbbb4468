"""Rate limit of a fill in bytes per second, for any reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType

from csi.concurrency.rate_limit import RateLimiter
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader, Reader


def limit_read_rate(
    open_reader: OpenReader, rate: int | None, folders: Mapping[str, int] = MappingProxyType({})
) -> OpenReader:
    """Wrap `open_reader` so that all its readers together read at most `rate` bytes per second.

    None means no limit. `folders` has the same limit for single top folders.
    """
    if rate is None and not folders:
        return open_reader
    total = None if rate is None else RateLimiter(rate)
    per_folder = {folder: RateLimiter(limit) for folder, limit in folders.items()}
    return lambda: _open_paced(open_reader, total, per_folder)


@contextmanager
def _open_paced(
    open_reader: Callable[[], AbstractContextManager[Reader]],
    total: RateLimiter | None,
    per_folder: Mapping[str, RateLimiter],
) -> Iterator[Reader]:
    with open_reader() as reader:
        yield _PacedReader(reader, total, per_folder)


class _PacedReader(Reader):
    def __init__(
        self, inner: Reader, total_pace: RateLimiter | None, folder_paces: Mapping[str, RateLimiter]
    ) -> None:
        self._inner, self._total_pace, self._folder_paces = inner, total_pace, folder_paces

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        paces = [
            pace
            for pace in (self._folder_paces.get(entry.path.partition("/")[0]), self._total_pace)
            if pace is not None
        ]
        if paces:
            # One wait for the later of both limits, not one after the other.
            paces[0].wait_for(len(buffer), *paces[1:])
        self._inner.read_into(entry, offset, buffer)
