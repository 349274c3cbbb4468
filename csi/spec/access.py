"""How the bytes of a manifest's files are read: what a fill asks of a source."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from csi.spec.manifest import Entry


class Reader(Protocol):
    """One connection to an origin, for one thread at a time."""

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` with the bytes of `entry` from byte `offset` on.

        Raises OriginUnavailable (trying again may help; what was in the buffer is not to be used), Unauthenticated,
        PermissionDenied, SourceNotFound, or SourceChanged when the file is not the one in the manifest any more.
        """


OpenReader = Callable[[], AbstractContextManager[Reader]]
