"""Locks by name that never wait: who finds one taken is told so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi.errors import Busy


class KeyedLocks:
    """A set of locks, one for each key in use. Thread-safe."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._guard = threading.Lock()

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold `key` for the block; raises Busy at once when another thread holds it."""
        with self._guard:
            if key in self._held:
                raise Busy(f"another call is working on {key}; call again when it is done")
            self._held.add(key)
        try:
            yield
        finally:
            with self._guard:
                self._held.discard(key)
