"""Background writes to the API server: made one at a time by a thread, only the latest for each object."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Hashable

from csi.errors import ClusterConflict, ClusterUnavailable, DataCacheError

log = logging.getLogger("datacache.outbox")

Write = Callable[[], None]
# Pace of the writes, even in a storm of pods; a new write replaces a waiting one of the same key.
_WRITE_INTERVAL = 0.2
_MAX_WAITING = 256
_MIN_BACKOFF, _MAX_BACKOFF = 1.0, 60.0
_LOG_INTERVAL = 60.0


class Outbox:
    """Queue with one waiting write per key.

    When `max_waiting` wait, further ones that are not durable are dropped and logged. Thread-safe.

    While the server is unreachable, only one write is tried after each pause, from 1 s to a minute. A failed
    write is dropped unless it is durable. The caller bounds the number of keys of durable writes.
    """

    def __init__(self, max_waiting: int = _MAX_WAITING, write_interval: float = _WRITE_INTERVAL) -> None:
        self._max_waiting, self._write_interval = max_waiting, write_interval
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, tuple[Write, bool]] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._backoff, self._logged_at = 0.0, float("-inf")

    def put(self, key: Hashable, write: Write, durable: bool = False) -> None:
        """Schedule `write`, replacing a waiting one of the same key.

        Never waits or raises.

        `write` may raise DataCacheError; a `durable` one is retried after ClusterConflict and
        ClusterUnavailable.
        """
        with self._changed:
            if self._closing.is_set():
                return
            if not durable and key not in self._waiting and len(self._waiting) >= self._max_waiting:
                self._log_limited("write queue full; writes dropped", f"{self._max_waiting} writes wait")
                return
            self._waiting[key] = write, durable
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Drop waiting writes, and wait for the one in progress, which takes a few seconds at most."""
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
                write, durable = self._waiting.pop(key)
            self._execute(key, write, durable)
            self._closing.wait(self._backoff or self._write_interval)

    def _execute(self, key: Hashable, write: Write, durable: bool) -> None:
        try:
            write()
            self._backoff = 0.0
        except (ClusterUnavailable, ClusterConflict) as error:
            is_unavailable = isinstance(error, ClusterUnavailable)
            # Random, so that writers of one object do not collide again.
            self._backoff = (
                min(max(_MIN_BACKOFF, 2 * self._backoff), _MAX_BACKOFF)
                if is_unavailable
                else random.uniform(0.1, _MIN_BACKOFF)
            )
            if is_unavailable:
                self._log_limited("cluster unavailable; writes are retried later", error)
            if durable:
                # A newer write of the same key wins over this one.
                with self._changed:
                    self._waiting.setdefault(key, (write, durable))
        except DataCacheError as error:
            self._log_limited("write rejected by the cluster", error)
        except Exception as error:
            # A foreign exception's text is not vetted for secrets.
            self._log_limited("write to the cluster failed", type(error).__name__)

    def _log_limited(self, message: str, reason: object) -> None:
        now = time.monotonic()
        if now - self._logged_at > _LOG_INTERVAL:
            self._logged_at = now
            log.warning(message, extra={"fields": {"reason": reason}})
