"""Writes to the API server that nobody waits for: made one after the other by a thread of its own, for each object the latest alone."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Hashable

from csi.errors import ClusterConflict, ClusterUnavailable, DataCacheError

log = logging.getLogger("datacache.outbox")

Write = Callable[[], None]
# A storm of pods is told of at this pace, whatever their number; what comes meanwhile takes the place of what waits.
_WRITE_INTERVAL = 0.2
_MAX_WAITING = 256
_MIN_BACKOFF, _MAX_BACKOFF = 1.0, 60.0
_LOG_INTERVAL = 60.0


class Outbox:
    """One write waits for each key. Where `most` wait, more are dropped, and the log says so, unless they are lasting. Thread-safe.

    While the server is away nothing is tried but one write after each pause, of 1 s to a minute. A write that it did not take is
    dropped unless it is lasting. Keys of lasting writes are for the caller to bound.
    """

    def __init__(self, max_waiting: int = _MAX_WAITING, write_interval: float = _WRITE_INTERVAL) -> None:
        self._max_waiting, self._write_interval = max_waiting, write_interval
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, tuple[Write, bool]] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._backoff, self._logged_at = 0.0, float("-inf")

    def put(self, key: Hashable, write: Write, durable: bool = False) -> None:
        """Have `write` called soon, in the place of the one of the same key that waits; never waits or raises.

        It may raise DataCacheError: ClusterConflict and ClusterUnavailable have a `durable` one tried again.
        """
        with self._changed:
            if self._closing.is_set():
                return
            if not durable and key not in self._waiting and len(self._waiting) >= self._max_waiting:
                self._log_limited("too many writes wait, some are dropped", f"{self._max_waiting} wait")
                return
            self._waiting[key] = write, durable
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Drop what waits, and let the write under way end, which takes some seconds at most."""
        self._closing.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify()
            thread = self._thread
        if thread:
            thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._changed:
                while not self._waiting and not self._closing.is_set():
                    self._changed.wait()
                if self._closing.is_set():
                    return
                key = next(iter(self._waiting))
                write, lasting = self._waiting.pop(key)
            self._execute(key, write, lasting)
            self._closing.wait(self._backoff or self._write_interval)

    def _execute(self, key: Hashable, write: Write, durable: bool) -> None:
        try:
            write()
            self._backoff = 0.0
        except (ClusterUnavailable, ClusterConflict) as error:
            is_unavailable = isinstance(error, ClusterUnavailable)
            # Those who write to one object must not come back together.
            self._backoff = (
                min(max(_MIN_BACKOFF, 2 * self._backoff), _MAX_BACKOFF)
                if is_unavailable
                else random.uniform(0.1, _MIN_BACKOFF)
            )
            if is_unavailable:
                self._log_limited("the cluster is not told, which goes on when it can be", error)
            if durable:
                with self._changed:
                    self._waiting.setdefault(key, (write, durable))
        except DataCacheError as error:
            self._log_limited("the cluster does not take what it is told", error)
        except Exception as error:
            # A foreign exception's text is not vetted for secrets.
            self._log_limited("the cluster was not told", type(error).__name__)

    def _log_limited(self, message: str, reason: object) -> None:
        now = time.monotonic()
        if now - self._logged_at > _LOG_INTERVAL:
            self._logged_at = now
            log.warning(message, extra={"fields": {"reason": reason}})
