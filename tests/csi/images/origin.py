"""An origin of its own for the fill's tests: gives `content(path, size)`, counts every byte, and fails as
it is told."""

from __future__ import annotations

import ast
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from csi.manifest.manifest import Entry
from csi.manifest.reader import Reader
from tests.csi.images.trees import content

Fault = Callable[[Entry, int, memoryview], None]
"""Called after the buffer was filled: may raise, change the bytes, or wait."""


class FakeOrigin:
    """Readers share its state. `asked` counts the requests of each path, `opened` and `closed` the
    connections, `most_open` those at once.

    `contents` are the files whose bytes are not `content(path, size)`.

    With `log`, every request is also appended to that file before it is answered: "offset length path", so
    that a killed process leaves its counters behind.
    """

    def __init__(
        self, fault: Fault | None = None, log: Path | None = None, contents: Mapping[str, bytes] | None = None
    ) -> None:
        self.fault, self.log = fault, log
        self.asked: Counter[str] = Counter()
        self.bytes = 0
        self.opened = self.closed = self.most_open = 0
        self.lock = threading.Lock()
        self._content: dict[str, bytes] = dict(contents or {})

    @contextmanager
    def open(self) -> Iterator[Reader]:
        with self.lock:
            self.opened += 1
            self.most_open = max(self.most_open, self.opened - self.closed)
        try:
            yield _Connection(self)
        finally:
            with self.lock:
                self.closed += 1

    def give(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        with self.lock:
            self.asked[entry.path] += 1
            self.bytes += len(buffer)
            data = self._content.setdefault(entry.path, content(entry.path, entry.size))
        if self.log is not None:
            with self.log.open("ab", buffering=0) as stream:
                stream.write(f"{offset} {len(buffer)} {entry.path!r}\n".encode())
        assert len(buffer)
        assert offset + len(buffer) <= entry.size
        buffer[:] = data[offset : offset + len(buffer)]
        if self.fault is not None:
            self.fault(entry, offset, buffer)


class _Connection:
    def __init__(self, origin: FakeOrigin) -> None:
        self._origin = origin
        self._thread = threading.get_ident()

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        assert threading.get_ident() == self._thread, "a reader is for one thread"
        self._origin.give(entry, offset, buffer)


def read_log(log: Path) -> list[tuple[int, int, str]]:
    """The requests in the log: offset, length, path."""
    rows = log.read_text().splitlines() if log.exists() else []
    return [(int(a), int(b), ast.literal_eval(c)) for a, b, c in (row.split(" ", 2) for row in rows)]


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process and return how it ended: 0, 1 for an exception, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
