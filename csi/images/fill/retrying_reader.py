"""Reads from an unreliable origin, retried on a fresh connection after growing pauses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType

from csi.errors import OriginThrottled, OriginUnavailable, OriginUntrusted, RangesIgnored
from csi.images.fill.request_gate import RequestGate
from csi.manifest.manifest import Entry
from csi.manifest.reader import ManyReader, OpenReader, PendingFiles, Reader

MAX_ATTEMPTS = 8
"""Number of attempts for one range; the fill fails with the last one."""
# Seconds; doubled after each failure.
MIN_RETRY_PAUSE = 0.25
MAX_RETRY_PAUSE = 10.0


class RetryingReader:
    """One connection that is replaced if it fails, and reads with permits of `gate`.

    For one thread; a context manager.

    `fetched_bytes` counts the bytes that arrived. `rank` is the index of the chunk being read; lower ones go
    first.
    """

    def __init__(self, open_reader: OpenReader, gate: RequestGate) -> None:
        self._open_reader, self._gate = open_reader, gate
        self._connection = ExitStack()
        self._reader: Reader | None = None
        self.fetched_bytes = 0
        self.rank = -1

    def read_into(self, entry: Entry, offset: int, buffer: memoryview, failures: int = 0) -> None:
        """Read like `Reader.read_into`, but raise OriginUnavailable only after the last of MAX_ATTEMPTS.

        OriginUntrusted is raised at once. `failures` is the number of failed attempts so far.
        """
        for attempt in range(failures, MAX_ATTEMPTS):
            try:
                with self._gate.permit(self.rank):
                    self._get_reader().read_into(entry, offset, buffer)
            except OriginUnavailable as error:
                self._prepare_retry(error, attempt)
            else:
                self._count_bytes(len(buffer))
                return

    def read_many(self, files: Sequence[tuple[Entry, memoryview]]) -> None:
        """Read whole files of at most SMALL_FILE bytes, in one batch if the reader can.

        Retries as `read_into`.
        """
        pending, failures = list(files), 0
        while len(pending) > 1:
            try:
                failed_files = self._read_batch_and_drop_finished(pending)
            except OriginUnavailable as error:
                self._prepare_retry(error, failures)
                failures += 1
                continue
            if not failed_files:
                # What is still pending can only be read one by one.
                break
            # The failed files are retried one by one, after a pause for the first error; then the batch goes
            # on.
            self._prepare_retry(next(iter(failed_files.values())), 0)
            for entry, buffer in [file for file in pending if file[0] in failed_files]:
                self.read_into(entry, 0, buffer, failures=1)
            pending = [file for file in pending if file[0] not in failed_files]
        for entry, buffer in pending:
            self.read_into(entry, 0, buffer)

    def _read_batch_and_drop_finished(self, pending: PendingFiles) -> dict[Entry, OriginUnavailable]:
        """Read a batch, removing each file that was read from `pending`; return the errors of the others.

        A file in neither stays for single reads: the reader is no ManyReader, or cannot batch this file.
        """
        reader = self._get_reader()
        if not isinstance(reader, ManyReader):
            return {}
        failed_files: dict[Entry, OriginUnavailable] = {}
        # Suppressed because `failed_files` has it too; an error of the call itself leaves all files pending.
        with suppress(OriginUnavailable), self._gate.batch_permits(self.rank, self._count_bytes) as permits:
            failed_files = reader.read_many(pending, permits)
            if failed_files:
                # Raised inside the permits, which halve the readers for some errors.
                raise next(iter(failed_files.values()))
        return failed_files

    def _count_bytes(self, count: int) -> None:
        self.fetched_bytes += count

    def _prepare_retry(self, error: OriginUnavailable, failures: int) -> None:
        """Reset the connection and back off, or raise the error.

        `failures` is the number of earlier failures in a row.
        """
        if isinstance(error, RangesIgnored):
            # Before the reset: other readers must be in rank order before this one reconnects.
            self._gate.limit_to_one_reader()
        self.reset()
        if failures == MAX_ATTEMPTS - 1 or isinstance(error, OriginUntrusted):
            raise error
        self._back_off(error, failures)

    def _back_off(self, error: OriginUnavailable, failures: int) -> None:
        """Wait after `failures` earlier failures in a row.

        If the origin throttles, all readers of the fill wait.
        """
        wait = min(MAX_RETRY_PAUSE, MIN_RETRY_PAUSE * 2.0**failures)
        if isinstance(error, OriginThrottled):
            self._gate.pause_all(max(wait, error.retry_after))
        elif not isinstance(error, RangesIgnored):
            self._gate.sleep(wait * random.uniform(0.5, 1))

    def reset(self) -> None:
        """Close the connection; the next read opens a new one."""
        old, self._connection, self._reader = self._connection, ExitStack(), None
        # A broken connection may fail to close too. That loses nothing: digests decide about what it has
        # read.
        with suppress(Exception):
            old.close()

    def _get_reader(self) -> Reader:
        if self._reader is None:
            self._reader = self._connection.enter_context(self._open_reader())
        return self._reader

    def __enter__(self) -> RetryingReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()
