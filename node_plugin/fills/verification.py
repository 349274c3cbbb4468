"""Images for volumes of other places than gave their bytes: compared with the volume's own origin first, once for each place."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Deadline
from csi.concurrency.single_flight import SingleFlight
from csi.concurrency.wait_limiter import WaitLimiter
from csi.images.node_store.records import ImagePaths
from csi.images.node_store.store import Store
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.protocol import WorkerRequest

log = logging.getLogger("datacache.vouch")

_COMPARING = "comparing the cached files with what this volume's origin sends; call again, the work goes on"
_Question = tuple[str, str, frozenset[tuple[str, str]]]


@dataclass(eq=False)
class _Comparison:
    """One comparison under way: `work(call)` does it, and can be stopped through the call."""

    work: Callable[[WorkerCall], None]
    call: WorkerCall = field(default_factory=WorkerCall)

    def run(self) -> None:
        self.work(self.call)

    def stop(self) -> None:
        self.call.stop()


class OriginVerification:
    """The comparisons of one node. Thread-safe."""

    def __init__(self, store: Store, pool: WorkerPool, wait_limiter: WaitLimiter, connections: int) -> None:
        self._store, self._pool = store, pool
        self._wait_limiter, self._connections = wait_limiter, connections
        self._comparisons = SingleFlight[_Question, _Comparison]("verify")

    def wait(
        self, key: str, digest: str, secrets: Mapping[str, str], deadline: Deadline, access: Mapping[str, str]
    ) -> None:
        """Return when the place that `access` reads from is known to hold the bytes of the sealed image, which the caller holds.

        `key` is the volume whose call waits. Raises Busy when `deadline` ends first (the work goes on), CorruptContent when the
        bytes differ, and what kept `secrets` from reading them; the image stays as it is.
        """
        origin_scope = self._store.compute_origin_scope(access, secrets)
        question = (digest, origin_scope, frozenset(secrets.items()))
        source, credential = dict(access), dict(secrets)

        def work(call: WorkerCall) -> None:
            self._compare(question, source, credential, call)

        while origin_scope not in self._store.get_provenance(digest):
            with self._wait_limiter.slot(key, deadline):
                self._comparisons.wait(question, lambda: _Comparison(work), deadline, lambda _: _COMPARING)

    def stop(self) -> None:
        """Stop all comparisons."""
        self._comparisons.stop_all()

    def _compare(
        self, question: _Question, access: dict[str, str], secrets: dict[str, str], call: WorkerCall
    ) -> None:
        digest, origin_scope, _ = question
        fields = {"image": digest, "place": origin_scope[:12]}
        try:
            with self._store.prevent_eviction(digest) as record:
                self._pool.call("vouch", self._build_request(question, record.paths, access, secrets), call)
                self._store.mark_verified(digest, origin_scope)
            log.info("image verified against its origin", extra={"fields": fields})
        except Exception as error:
            log.warning(
                "image not verified against its origin",
                extra={"fields": {**fields, "reason": type(error).__name__}},
            )
            raise

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
