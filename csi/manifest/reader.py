"""Protocols for reading the bytes of a manifest's files: what a fill needs from a source."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from csi.errors import OriginUnavailable
from csi.manifest.manifest import Entry


class Reader(Protocol):
    """One connection to an origin, for one thread at a time."""

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer` with the bytes of `entry` starting at `offset`.

        Raises OriginUnavailable (a retry may succeed; the contents of the buffer are undefined),
        Unauthenticated, PermissionDenied, SourceNotFound, or SourceChanged if the file is no longer the one
        in the manifest.
        """


SMALL_FILE = 1 << 20
"""Size in bytes of the largest file that is passed to a `ManyReader`."""

PendingFiles = list[tuple[Entry, memoryview]]
"""Files with the buffers to fill."""


class RequestPermits(Protocol):
    """Number of requests that one reader may have in flight, which changes over time."""

    def can_start(self, in_flight: int) -> bool:
        """Return whether one more request may start while `in_flight` are running.

        Raises the error that ends the fill.
        """

    def set_remaining(self, remaining: int) -> None:
        """Report that at most `remaining` answers are still to come.

        Other readers may use permits beyond that.
        """

    def on_bytes_received(self, count: int) -> None:
        """Report that `count` more bytes have arrived."""


@runtime_checkable
class ManyReader(Reader, Protocol):
    """A reader that is faster if it may request many small files in one call."""

    def read_many(self, pending: PendingFiles, permits: RequestPermits) -> dict[Entry, OriginUnavailable]:
        """Fill buffers that are each as long as their whole file, none empty or above SMALL_FILE.

        Files that were read are removed from `pending`. After the first failure no request is started; those
        in flight finish first. Returns the error of each file that failed, after one attempt each; these
        files stay in `pending`, and so do those that only `read_into` can read. Raises the same errors as
        `read_into`, except those that a retry may cure.
        """


OpenReader = Callable[[], AbstractContextManager[Reader]]
