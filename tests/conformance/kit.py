"""What the conformance suite asks of an origin: a kit builds one, changes it and watches it.

A kit is a context manager; `KITS` in `conftest.py` names them all. A kit whose origin cannot run on this
machine says so from `missing()` and its tests are skipped with that line. Every method that touches the
origin has its effect when it returns.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from csi.errors import DataCacheError
from csi.parameters.cache_spec import CacheSpec
from csi.sources.source import Source
from tests.origins.faults import Counters, Faults

# A tree as kits take it: relative path -> bytes of the file. `None` is an empty folder (a kit whose origin
# knows no
# empty folders leaves it out); text is a symlink's target (a kit whose origin knows no symlinks leaves it
# out).
Tree = dict[str, bytes | str | None]


class Kit(Protocol):
    """One origin of one source. All trees of a kit live in the same origin, each at a place of its own."""

    name: str
    # The pinned spec goes on meaning the old bytes after a change (a commit), or else reading what has
    # changed
    # since is refused with SourceChanged (a NAS file).
    pins_revisions: bool
    # The origin gives a digest for every file, so wrong bytes are caught when the file is verified.
    verifies: bool
    # What an origin without the right to list, without the right to read, and without the thing answers with.
    forbidden: tuple[type[DataCacheError], ...]
    unreadable: tuple[type[DataCacheError], ...]
    # There is no listing apart from reading (a URL): who may not read is refused when the source is resolved.
    lists_by_reading: bool
    # A place may have files that are in no folder.
    top_files: bool
    # Connections that may stay open, idle, after every source of the process is closed.
    idle_connections: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def missing(self) -> str:
        """Why this origin cannot run here, in words; empty when it can. Called before `__enter__`."""

    def place(self, tree: Tree) -> CacheSpec:
        """Put `tree` at a fresh place of the origin, readable with `credential`.

        The spec is as a user would write it (not pinned).
        """

    @property
    def credential(self) -> str | None:
        """What `open` takes to be let in; None where the origin knows no credentials."""

    def open(self, spec: CacheSpec, credential: str | None) -> Source:
        """The source under test, as the product would build it."""

    def environment(self) -> dict[str, str]:
        """Environment that a fresh process needs to build the same source (on top of a bare one)."""

    def program(self) -> str:
        """Python text that defines `open(spec, credential) -> Source`.

        Run in a fresh process with `environment`.
        """

    def change(self, spec: CacheSpec, path: str, data: bytes) -> None:
        """Make `path` hold other bytes: a new revision, or a file written again (size or time differ)."""

    def remove(self, spec: CacheSpec) -> None:
        """Take the whole place away."""

    def forbid(self, spec: CacheSpec) -> None:
        """From now on `credential` may not even list this place."""

    def forbid_reading(self, spec: CacheSpec) -> None:
        """From now on `credential` may list this place but read no file of it."""

    def corrupt(self, spec: CacheSpec, path: str) -> None:
        """Send other bytes of the same length for `path` from now on, while listing it as before."""

    def cut(self, spec: CacheSpec, path: str, after: int) -> bool:
        """Break the connection once, `after` bytes into the next answer for `path`.

        False where the kit cannot.
        """

    def stop(self) -> None:
        """Make the whole origin unreachable (connections are refused or reset)."""

    def start(self) -> None:
        """Make it reachable again at the same address."""

    def bytes_sent(self, spec: CacheSpec, path: str) -> int | None:
        """File bytes sent for `path` so far, or None where the origin does not count."""

    def open_connections(self) -> int:
        """TCP connections of this process that the origin holds open now."""


@runtime_checkable
class FaultyKit(Kit, Protocol):
    """A kit whose origin speaks HTTP and fails as it is told: `test_faults` is for these."""

    # What a fill ends with when a file changed on the way, where the pinned spec goes on meaning the old
    # bytes no more.
    changed: type[DataCacheError]

    @property
    def faults(self) -> Faults:
        """The faults of the origin."""

    @property
    def counters(self) -> Counters:
        """What the origin counted."""

    def key(self, spec: CacheSpec, path: str) -> str:
        """What faults and counters call a file."""

    def expire(self) -> bool:
        """Every signed address that was given out so far is refused from now on.

        False where none is signed.
        """
