"""Reading from an origin that fails now and then: again, on a fresh connection, after a growing pause."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType

from csi.errors import OriginThrottled, OriginUnavailable
from csi.spec.access import OpenReader, Reader
from csi.spec.manifest import Entry

MAX_FAILURES = 8
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
LONGEST_RETRY_AFTER = 600.0


class PatientReader:
    """One connection that is replaced when it fails. For one thread, as a context.

    `pause(seconds)` waits, and raises when the fill is to stop. `fetched` counts the bytes that arrived.
    """

    def __init__(self, open_reader: OpenReader, pause: Callable[[float], None]) -> None:
        self._open, self._pause = open_reader, pause
        self._connection = ExitStack()
        self._reader: Reader | None = None
        self.fetched = 0

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """As `Reader.read_into`; OriginUnavailable is raised only after MAX_FAILURES in a row."""
        for failures in range(MAX_FAILURES):
            try:
                self._connected().read_into(entry, offset, buffer)
            except OriginUnavailable as error:
                self.renew()
                if failures == MAX_FAILURES - 1:
                    raise
                self._pause(_patience(error, failures))
            else:
                self.fetched += len(buffer)
                return

    def renew(self) -> None:
        """Let go of the connection; the next read opens a fresh one."""
        old, self._connection, self._reader = self._connection, ExitStack(), None
        # A connection that failed may fail to close, and what it read is judged by its digest anyway.
        with suppress(Exception):
            old.close()

    def _connected(self) -> Reader:
        if self._reader is None:
            self._reader = self._connection.enter_context(self._open())
        return self._reader

    def __enter__(self) -> PatientReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.renew()


def _patience(error: OriginUnavailable, failures: int) -> float:
    """Seconds to wait after the given number of earlier failures in a row."""
    wait = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**failures)
    if isinstance(error, OriginThrottled):
        wait = max(wait, min(error.retry_after, LONGEST_RETRY_AFTER))
    return wait
