"""Reading from an origin that fails now and then: again, on a fresh connection, after a growing pause."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType

from csi.errors import OriginThrottled, OriginUnavailable, OriginUntrusted, RangesIgnored
from csi.images.fill.request_gate import Flow
from csi.manifest.manifest import Entry
from csi.manifest.reader import ManyReader, OpenReader, Reader, Wanted

MAX_FAILURES = 8
"""How often one range is asked for: so many failures in a row end the fill."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0


class PatientReader:
    """One connection that is replaced when it fails, and asks when it is its turn in `flow`. For one thread, as a context.

    `fetched` counts the bytes that arrived. `rank` is the index of the chunk that is read: lower ones are first.
    """

    def __init__(self, open_reader: OpenReader, flow: Flow) -> None:
        self._open, self._flow = open_reader, flow
        self._connection = ExitStack()
        self._reader: Reader | None = None
        self.fetched = 0
        self.rank = -1

    def read_into(self, entry: Entry, offset: int, buffer: memoryview, failures: int = 0) -> None:
        """As `Reader.read_into`; OriginUnavailable is raised only after MAX_FAILURES in a row, but OriginUntrusted at once.

        `failures` is how often it was asked for in vain already.
        """
        for failed in range(failures, MAX_FAILURES):
            try:
                with self._flow.turn(self.rank):
                    self._connected().read_into(entry, offset, buffer)
            except OriginUnavailable as error:
                self._bear(error, failed)
            else:
                self._came(len(buffer))
                return

    def read_many(self, files: Sequence[tuple[Entry, memoryview]]) -> None:
        """As `read_into` for files of at most SMALL_FILE bytes, each whole, in one go where the reader can."""
        wanted, failed = list(files), 0
        while len(wanted) > 1:
            try:
                in_vain = self._read_many(wanted)
            except OriginUnavailable as error:
                self._bear(error, failed)
                failed += 1
                continue
            if not in_vain:
                break
            self._bear(next(iter(in_vain.values())), 0)
            for entry, buffer in [file for file in wanted if file[0] in in_vain]:
                self.read_into(entry, 0, buffer, failures=1)
            wanted = [file for file in wanted if file[0] not in in_vain]
        for entry, buffer in wanted:
            self.read_into(entry, 0, buffer)

    def _read_many(self, wanted: Wanted) -> dict[Entry, OriginUnavailable]:
        reader = self._connected()
        if not isinstance(reader, ManyReader):
            return {}
        in_vain: dict[Entry, OriginUnavailable] = {}
        with suppress(OriginUnavailable), self._flow.turns(self.rank, self._came) as turns:
            in_vain = reader.read_many(wanted, turns)
            for error in in_vain.values():
                # Through the turns, which slow down for some.
                raise error
        return in_vain

    def _came(self, count: int) -> None:
        self.fetched += count

    def _bear(self, error: OriginUnavailable, failures: int) -> None:
        """Get ready to ask again after `failures` earlier ones in a row, or raise."""
        if isinstance(error, RangesIgnored):
            # Before the connection goes: only what others read after that is in order.
            self._flow.one_by_one()
        self.renew()
        if failures == MAX_FAILURES - 1 or isinstance(error, OriginUntrusted):
            raise error
        self._sit_out(error, failures)

    def _sit_out(self, error: OriginUnavailable, failures: int) -> None:
        """Wait after `failures` earlier ones in a row; what the origin asks for, all readers of the fill wait."""
        wait = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**failures)
        if isinstance(error, OriginThrottled):
            self._flow.hold(max(wait, error.retry_after))
        elif not isinstance(error, RangesIgnored):
            self._flow.pause(wait * random.uniform(0.5, 1))

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
