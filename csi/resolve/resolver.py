"""Resolving with a check of read access, on the plugin's side.

The work is done in a worker, once for all concurrent calls with the same spec and credential, and may outlast
the call that started it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from csi.concurrency.deadline import Deadline
from csi.concurrency.single_flight import Job, SingleFlight
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import OriginUnavailable, PermissionDenied, SourceNotFound, Unauthenticated
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.resolve.proof_memory import ProofMemory
from csi.worker.operations import PinSource, ResolveSource
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.results import Resolution

log = logging.getLogger("datacache.resolve")

# Seconds; external-provisioner retries within five minutes, kubelet within two and a half.
_ABANDONED_TIMEOUT = 600.0
AdoptManifest = Callable[[Resolution, Path], None]


@dataclass(eq=False)
class _ResolveJob(Job):
    """A running resolve: `work(call)` does it, and can be stopped through the call."""

    work: Callable[[WorkerCall], Resolution]
    call: WorkerCall = field(default_factory=WorkerCall)
    result: Resolution | None = None

    def run(self) -> None:
        self.result = self.work(self.call)

    def stop(self) -> None:
        self.call.stop()


class Resolver:
    """Resolver of specs for one plugin.

    With `refresh_moving`, a spec that can move (a branch, a NAS) is resolved at the origin each time, as
    creating a volume requires; otherwise a fresh proof is enough, as for mounting one. `new_scratch_path`
    returns a new path for a manifest file, before it is adopted.

    A resolve that no call has waited for during ten minutes is stopped, since an origin may never finish.
    """

    def __init__(
        self,
        pool: WorkerPool,
        proofs: ProofMemory,
        wait_limiter: WaitLimiter,
        *,
        refresh_moving: bool,
        new_scratch_path: Callable[[], Path] | None = None,
    ) -> None:
        self._pool, self._proofs, self._wait_limiter = pool, proofs, wait_limiter
        self._refresh_moving = refresh_moving
        self._new_scratch_path = new_scratch_path
        self._flights = SingleFlight[str, _ResolveJob]("resolve", _ABANDONED_TIMEOUT)

    def resolve(
        self,
        volume_id: str,
        spec: CacheSpec,
        secrets: Secrets,
        deadline: Deadline,
        is_proof_usable: Callable[[str], bool] = lambda _: True,
        adopt_manifest: AdoptManifest | None = None,
        force_refresh: bool = False,
    ) -> Resolution:
        """Resolve `spec`, once this credential has read bytes of it.

        `volume_id` is the volume whose call waits. `is_proof_usable` returns whether a proof of this digest
        suffices: its manifest is stored. If not, the origin is asked in spite of the proof, and
        `adopt_manifest` gets the manifest's file. `force_refresh` is `refresh_moving` for this call.

        Raises Busy if `deadline` ends first (the work goes on and the next call joins it), and the errors of
        a Source.
        """
        if not ((self._refresh_moving or force_refresh) and spec.is_moving):
            proven = self._proofs.find_fresh(secrets, spec)
            if proven and is_proof_usable(proven.digest):
                return proven
        # A copy: the work may outlast the call that owns the mapping.
        credential = Secrets(dict(secrets.values))

        def work(call: WorkerCall) -> Resolution:
            return self._resolve_at_origin(call, spec, credential, is_proof_usable, adopt_manifest)

        def describe(job: _ResolveJob) -> str:
            return f"still resolving {spec.source.display_name}; call again, the work goes on"

        key = self._proofs.get_key(secrets, spec)
        with self._wait_limiter.slot(volume_id, deadline):
            job = self._flights.wait(key, lambda: _ResolveJob(work), deadline, describe)
        assert job.result is not None
        return job.result

    def _resolve_at_origin(
        self,
        call: WorkerCall,
        spec: CacheSpec,
        secrets: Secrets,
        is_proof_usable: Callable[[str], bool],
        adopt_manifest: AdoptManifest | None,
    ) -> Resolution:
        # All specs of this call: a proof is stored, or forgotten, for each of them.
        specs = {spec}
        try:
            pinned = self._pin(call, spec, secrets)
            specs.add(pinned)
            # A branch that still points to a proven commit needs no second listing.
            known = None if pinned.is_unpinnable else self._proofs.find_fresh(secrets, pinned)
            if known and is_proof_usable(known.digest):
                self._proofs.share_proof(secrets, pinned, spec)
                return known
            resolution = self._resolve_in_worker(call, pinned, secrets, adopt_manifest)
        except OriginUnavailable as error:
            known = self._proofs.find_within_grace(secrets, spec)
            if known is None or not is_proof_usable(known.digest):
                raise
            log.warning(
                "origin unreachable, using an earlier proof",
                extra={"fields": {"source": spec.source.display_name, "reason": error}},
            )
            return known
        except (Unauthenticated, PermissionDenied, SourceNotFound):
            # The origin refused: no proof may bridge its next outage.
            for refused_spec in specs:
                self._proofs.forget(secrets, refused_spec)
            raise
        for spec_variant in specs | {resolution.spec}:
            self._proofs.remember(secrets, spec_variant, resolution)
        return resolution

    def _pin(self, call: WorkerCall, spec: CacheSpec, secrets: Secrets) -> CacheSpec:
        if not spec.is_moving or spec.is_unpinnable:
            return spec
        return self._pool.call("resolve", PinSource(spec, secrets), call)

    def _resolve_in_worker(
        self,
        call: WorkerCall,
        pinned: CacheSpec,
        secrets: Secrets,
        adopt_manifest: AdoptManifest | None,
    ) -> Resolution:
        if adopt_manifest is None or self._new_scratch_path is None:
            return self._pool.call("resolve", ResolveSource(pinned, secrets), call)
        manifest_path = self._new_scratch_path()
        try:
            resolution = self._pool.call("resolve", ResolveSource(pinned, secrets, manifest_path), call)
            adopt_manifest(resolution, manifest_path)
            return resolution
        # Adopting moves the file, unless its digest is not the requested one.
        finally:
            manifest_path.unlink(missing_ok=True)
