"""Overall time limit for response headers that arrive byte by byte.

Every byte restarts the socket's own read timeout, so only another thread can end such a wait.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Seconds.
_CHECK_INTERVAL = 1.0
# The thread ends after so many seconds without connections to watch.
_MAX_IDLE_CHECKS = 30


class HeaderTimeouts:
    """Shuts down connections whose deadline has passed.

    One thread checks once per second while there are any.
    """

    def __init__(self) -> None:
        self._deadlines: dict[int, tuple[socket.socket, float]] = {}
        self._expired: set[int] = set()
        self._lock = threading.Lock()
        self._is_watching = False

    @contextmanager
    def enforce(self, connection: socket.socket, timeout: float) -> Iterator[None]:
        """Raise TimeoutError if the block takes longer than `timeout` seconds to read from `connection`.

        The limit is exact to about a second.
        """
        key = id(connection)
        self._add(key, connection, time.monotonic() + timeout)
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        finally:
            with self._lock:
                del self._deadlines[key]
                is_expired = key in self._expired
                self._expired.discard(key)
        if is_expired:
            # Also without a failure: headers cut off by the shutdown may parse as complete, shorter ones.
            raise TimeoutError("the response headers took too long") from failure
        if failure is not None:
            raise failure

    def _add(self, key: int, connection: socket.socket, deadline: float) -> None:
        with self._lock:
            self._deadlines[key] = connection, deadline
            if not self._is_watching:
                self._is_watching = True
                threading.Thread(target=self._watch, name="header timeouts", daemon=True).start()

    def _watch(self) -> None:
        idle_checks = 0
        while idle_checks < _MAX_IDLE_CHECKS or not self._stop_if_idle():
            time.sleep(_CHECK_INTERVAL)
            idle_checks = 0 if self._deadlines else idle_checks + 1
            self._shut_down_expired()

    def _stop_if_idle(self) -> bool:
        with self._lock:
            self._is_watching = bool(self._deadlines)
            return not self._is_watching

    def _shut_down_expired(self) -> None:
        now = time.monotonic()
        with self._lock:
            for key, (connection, deadline) in self._deadlines.items():
                if now >= deadline and key not in self._expired:
                    self._expired.add(key)
                    # Not SSLSocket.shutdown: it drops the TLS object that the reading thread is using.
                    with suppress(OSError):
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)
