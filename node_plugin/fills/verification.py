"""Images for volumes of other places than gave their bytes: compared with the volume's own origin first, once for each place."""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import Busy
from csi.images.node_store.records import ImagePaths
from csi.images.node_store.store import Store
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.protocol import WorkerRequest

log = logging.getLogger("datacache.vouch")

_ERROR_TTL = 60.0
_Question = tuple[str, str, frozenset[tuple[str, str]]]


@dataclass
class _Comparison:
    call: WorkerCall = field(default_factory=WorkerCall)
    waiters: set[Deadline] = field(default_factory=set)
    error: Exception | None = None
    ended_at: float = 0.0

    @property
    def is_stale(self) -> bool:
        """An error nobody came to hear is told to the next caller, but not to one that comes much later."""
        return self.ended_at > 0 and time.monotonic() - self.ended_at > _ERROR_TTL


class OriginVerification:
    """The comparisons of one node. Thread-safe."""

    def __init__(self, store: Store, pool: WorkerPool, wait_limiter: WaitLimiter, connections: int) -> None:
        self._store, self._pool, self._wait_limiter, self._connections = (
            store,
            pool,
            wait_limiter,
            connections,
        )
        self._lock = threading.Lock()
        self._running: dict[_Question, _Comparison] = {}

    def wait(
        self, key: str, digest: str, secrets: Mapping[str, str], deadline: Deadline, access: Mapping[str, str]
    ) -> None:
        """Return when the place that `access` reads from is known to hold the bytes of the sealed image, which the caller holds.

        `key` is the volume whose call waits. Raises Busy when `deadline` ends first (the work goes on), CorruptContent when the
        bytes differ, and what kept `secrets` from reading them; the image stays as it is.
        """
        origin_scope = self._store.compute_origin_scope(access, secrets)
        question = (digest, origin_scope, frozenset(secrets.items()))
        while origin_scope not in self._store.get_provenance(digest):
            with self._wait_limiter.slot(key, deadline):
                comparison = self._join(question, access, secrets, deadline)
                while not comparison.ended_at and not deadline.is_over:
                    deadline.sleep()
                self._leave(question, comparison, deadline)
            if not comparison.ended_at or deadline.cancelled:
                raise Busy(
                    deadline.cancelled
                    or "comparing the cached files with what this volume's origin sends; call again, the work goes on"
                )
            if comparison.error:
                raise comparison.error

    def stop(self) -> None:
        """Stop all comparisons."""
        with self._lock:
            calls = [comparison.call for comparison in self._running.values()]
        for call in calls:
            call.stop()

    def _join(
        self, question: _Question, access: Mapping[str, str], secrets: Mapping[str, str], deadline: Deadline
    ) -> _Comparison:
        with self._lock:
            self._running = {other: kept for other, kept in self._running.items() if not kept.is_stale}
            comparison = self._running.get(question)
            if comparison is None:
                comparison = self._running[question] = _Comparison()
                threading.Thread(
                    target=self._run_comparison,
                    args=(question, comparison, dict(access), dict(secrets)),
                    name="vouch",
                    daemon=True,
                ).start()
            comparison.waiters.add(deadline)
            return comparison

    def _leave(self, question: _Question, comparison: _Comparison, deadline: Deadline) -> None:
        with self._lock:
            comparison.waiters.discard(deadline)
            if comparison.ended_at and self._running.get(question) is comparison:
                del self._running[question]

    def _run_comparison(
        self, question: _Question, comparison: _Comparison, access: dict[str, str], secrets: dict[str, str]
    ) -> None:
        digest, origin_scope, _ = question
        try:
            with self._store.prevent_eviction(digest) as record:
                self._pool.call(
                    "vouch", self._build_request(question, record.paths, access, secrets), comparison.call
                )
                self._store.mark_verified(digest, origin_scope)
            log.info("image vouched for", extra={"fields": {"image": digest, "place": origin_scope[:12]}})
        except Exception as error:
            comparison.error = error
            log.warning(
                "image not vouched for",
                extra={
                    "fields": {"image": digest, "place": origin_scope[:12], "reason": type(error).__name__}
                },
            )
        with self._lock:
            comparison.ended_at = time.monotonic()
            for deadline in comparison.waiters:
                deadline.wake()
            if not comparison.error and not comparison.waiters:
                self._running.pop(question, None)

    def _build_request(
        self, question: _Question, paths: ImagePaths, access: dict[str, str], secrets: dict[str, str]
    ) -> WorkerRequest:
        manifest, image, seed = str(paths.manifest), str(paths.image), self._sampling_seed(question)
        return WorkerRequest(
            "vouch", access, secrets, manifest=manifest, image=image, connections=self._connections, seed=seed
        )

    def _sampling_seed(self, question: _Question) -> str:
        """The same for the same question: who may try again is not to try elsewhere."""
        return hmac.new(
            self._store.key(), f"vouch {question[0]} {question[1]}".encode(), hashlib.sha256
        ).hexdigest()
