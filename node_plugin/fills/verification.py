"""Verification of sealed images against a volume's own origin, once for each origin scope.

A volume is published only if its scope is known to hold the image's bytes. If they came from another scope,
samples are read from the volume's origin, with its credential, and compared.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from csi.concurrency.deadline import Deadline
from csi.concurrency.single_flight import Job, SingleFlight
from csi.concurrency.wait_limiter import WaitLimiter
from csi.images.node_store.store import Store
from csi.parameters.content_ref import ContentRef, Secrets
from csi.worker.operations import VerifyImage
from csi.worker.pool import WorkerCall, WorkerPool

log = logging.getLogger("datacache.verification")

_BUSY_MESSAGE = (
    "comparing the cached files with what this volume's origin sends; call again, the work goes on"
)
# Digest, origin scope and credential.
_Key = tuple[str, str, Secrets]


@dataclass(eq=False)
class _Comparison(Job):
    """A running comparison: `work(call)` does it, and can be stopped through the call."""

    work: Callable[[WorkerCall], None]
    call: WorkerCall = field(default_factory=WorkerCall)

    def run(self) -> None:
        self.work(self.call)

    def stop(self) -> None:
        self.call.stop()


class OriginVerification:
    """Verification of images of `store`, in workers of `pool`. Thread-safe."""

    def __init__(
        self, store: Store, pool: WorkerPool, wait_limiter: WaitLimiter, max_connections: int
    ) -> None:
        self._store, self._pool = store, pool
        self._wait_limiter, self._max_connections = wait_limiter, max_connections
        self._comparisons = SingleFlight[_Key, _Comparison]("verify")

    def ensure_verified(self, volume_id: str, content: ContentRef, deadline: Deadline) -> None:
        """Return when the scope of `content` is known to hold the sealed image's bytes.

        `volume_id` is the volume whose call waits; the caller keeps the image from eviction. Raises Busy if
        `deadline` ends first (the comparison goes on), CorruptContent if the bytes differ, and the errors of
        a Source; the image stays as it is.
        """
        content = self._store.with_source(content)
        origin_scope = self._store.compute_origin_scope(content)
        # Another credential of the same scope may be refused, so they do not share a comparison.
        key = (content.digest, origin_scope, content.secrets)

        def work(call: WorkerCall) -> None:
            self._compare(content, origin_scope, call)

        while origin_scope not in self._store.get_provenance(content.digest):
            with self._wait_limiter.slot(volume_id, deadline):
                self._comparisons.wait(key, _Comparison(work), deadline, lambda _: _BUSY_MESSAGE)

    def mark_verified(self, content: ContentRef) -> None:
        """Record that the scope of `content` holds the sealed image's bytes.

        Raises NotFound if the image is gone.
        """
        content = self._store.with_source(content)
        origin_scope = self._store.compute_origin_scope(content)
        if origin_scope not in self._store.get_provenance(content.digest):
            self._store.mark_verified(content.digest, origin_scope)

    def stop(self) -> None:
        """Stop all comparisons."""
        self._comparisons.stop_all()

    def _compare(self, content: ContentRef, origin_scope: str, call: WorkerCall) -> None:
        fields = {"image": content.digest, "scope": origin_scope[:12]}
        try:
            # The image must not be replaced between the comparison and its record.
            with self._store.prevent_eviction(content.digest) as record:
                seed = self._sampling_seed(content.digest, origin_scope)
                operation = VerifyImage(content, record.paths.folder, self._max_connections, seed)
                self._pool.call("verify", operation, call)
                self._store.mark_verified(content.digest, origin_scope)
            log.info("image verified against its origin", extra={"fields": fields})
        except Exception as error:
            # The name only: a foreign exception's text is not vetted for secrets.
            fields["reason"] = type(error).__name__
            log.warning("image not verified against its origin", extra={"fields": fields})
            raise

    def _sampling_seed(self, digest: str, origin_scope: str) -> str:
        """Return the seed that selects the ranges to compare, the same for each attempt.

        Otherwise an origin with other content could be tried until the samples happen to match.
        """
        # "vouch" is the former name of this operation. It is part of the derivation and stays: a
        # new version must compare the ranges that an earlier one did.
        text = f"vouch {digest} {origin_scope}".encode()
        return hmac.new(self._store.load_key(), text, hashlib.sha256).hexdigest()
