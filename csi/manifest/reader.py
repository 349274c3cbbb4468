"""How the bytes of a manifest's files are read: what a fill asks of a source."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from csi.errors import OriginUnavailable
from csi.manifest.manifest import Entry


class Reader(Protocol):
    """One connection to an origin, for one thread at a time."""

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` with the bytes of `entry` from byte `offset` on.

        Raises OriginUnavailable (trying again may help; what was in the buffer is not to be used), Unauthenticated,
        PermissionDenied, SourceNotFound, or SourceChanged when the file is not the one in the manifest any more.
        """


SMALL_FILE = 1 << 20
"""Bytes of the largest file that a `ManyReader` is asked for."""

PendingFiles = list[tuple[Entry, memoryview]]
"""Files with the buffers that they fill."""


class RequestPermits(Protocol):
    """How many requests at once one reader may have under way; that changes as it goes."""

    def can_start(self, in_flight: int) -> bool:
        """Whether one more request may be begun while so many are under way. Raises what ends the fill."""

    def set_remaining(self, remaining: int) -> None:
        """At most so many answers are still to come: others may have the turns that this leaves."""

    def on_bytes_received(self, count: int) -> None:
        """So many bytes more have come."""


@runtime_checkable
class ManyReader(Reader, Protocol):
    """A reader that is faster when it may ask for many small files in one go."""

    def read_many(self, pending: PendingFiles, permits: RequestPermits) -> dict[Entry, OriginUnavailable]:
        """Fill buffers that are as long as their whole files, none empty or above SMALL_FILE.

        What was read is taken out of `pending`. The first file that is asked for in vain ends it, once those under way have ended: all that
        failed are returned, asked for once each, and are still in `pending`. So are those that only `read_into` can read. Raises as that does
        for what no second try would change.
        """


OpenReader = Callable[[], AbstractContextManager[Reader]]
