"""How the bytes of a manifest's files are read: what a fill asks of a source."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from csi.spec.manifest import Entry


class Reader(Protocol):
    """One connection to an origin, for one thread at a time."""

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` with the bytes of `entry` from byte `offset` on.

        Raises OriginUnavailable (trying again may help; what was in the buffer is not to be used), Unauthenticated,
        PermissionDenied, SourceNotFound, or SourceChanged when the file is not the one in the manifest any more.
        """


SMALL_FILE = 1 << 20
"""Bytes of the largest file that a `ManyReader` is asked for."""


@runtime_checkable
class ManyReader(Reader, Protocol):
    """A reader that is faster when it may ask for many small files in one go."""

    def read_many(self, wanted: list[tuple[Entry, memoryview]], at_once: int) -> None:
        """Fill buffers that are as long as their whole files, none empty or above SMALL_FILE, `at_once` requests at a time.

        What was read is taken out of `wanted`; what is left there is for `read_into` to read. Raises as that does, when those that were
        under way ended.
        """


OpenReader = Callable[[], AbstractContextManager[Reader]]
