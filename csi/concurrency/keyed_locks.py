"""Locks by key that fail fast by default: acquiring a taken lock raises Busy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi.errors import Busy


class KeyedLocks:
    """A set of locks, one for each key in use. Thread-safe."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, key: str, timeout: float = 0.0) -> Iterator[None]:
        """Hold `key` for the block; raises Busy if another thread still holds it after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: key not in self._held, timeout):
                raise Busy(f"another call is working on {key}; call again when it is done")
            self._held.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(key)
                self._changed.notify_all()
