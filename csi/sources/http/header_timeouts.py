"""Answers whose head comes byte by byte: each byte ends one wait and begins another, so only a look from outside ends them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOOK_SECONDS = 1.0
_IDLE_LOOKS = 30


class Deadlines:
    """Cuts connections whose time is over. One thread looks once a second, as long as there is something to look at."""

    def __init__(self) -> None:
        self._due: dict[int, tuple[socket.socket, float]] = {}
        self._cut: set[int] = set()
        self._guard = threading.Lock()
        self._looking = False

    @contextmanager
    def limit(self, connection: socket.socket, seconds: float) -> Iterator[None]:
        """What is done here with `connection` fails with TimeoutError when it takes longer than about `seconds`."""
        me = id(connection)
        self._begin(me, connection, time.monotonic() + seconds)
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        finally:
            with self._guard:
                del self._due[me]
                late = me in self._cut
                self._cut.discard(me)
        if late:
            # Not always a failure by itself: a head that ends with its connection may pass for a short one.
            raise TimeoutError("the head of the answer took too long") from failure
        if failure is not None:
            raise failure

    def _begin(self, me: int, connection: socket.socket, end: float) -> None:
        with self._guard:
            self._due[me] = connection, end
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="deadlines", daemon=True).start()

    def _look(self) -> None:
        idle = 0
        while idle < _IDLE_LOOKS or not self._ended():
            time.sleep(_LOOK_SECONDS)
            idle = 0 if self._due else idle + 1
            self._cut_late()

    def _ended(self) -> bool:
        with self._guard:
            self._looking = bool(self._due)
            return not self._looking

    def _cut_late(self) -> None:
        now = time.monotonic()
        with self._guard:
            for me, (connection, end) in self._due.items():
                if now >= end and me not in self._cut:
                    self._cut.add(me)
                    # Not the TLS socket's own: that would take its state from under the thread that reads.
                    with suppress(OSError):
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)
