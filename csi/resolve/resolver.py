"""Resolving with a check of read access, on the plugin's side.

The work is done in a worker, once for all concurrent calls with the same spec and credential, and may outlast
the call that started it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from csi.concurrency.deadline import Deadline
from csi.concurrency.single_flight import Job, SingleFlight
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import (
    DataCacheError,
    OriginUnavailable,
    PermissionDenied,
    SourceChanged,
    SourceNotFound,
    Unauthenticated,
)
from csi.manifest.differences import describe_changes
from csi.manifest.manifest import Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.resolve.proof_memory import ProofMemory
from csi.worker.operations import PinSource, ResolveSource
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.results import Resolution

log = logging.getLogger("datacache.resolve")

# Seconds; external-provisioner retries within five minutes, kubelet within two and a half.
_ABANDONED_TIMEOUT = 600.0


class ManifestStore(Protocol):
    """Where a node keeps the manifests of its images: `csi.images.node_store.store.Store`."""

    def has_manifest(self, digest: str) -> bool:
        """Return whether the manifest of a digest is stored."""

    def read_manifest(self, digest: str) -> Manifest:
        """Return a stored manifest; raises DataCacheError."""

    def new_temp_path(self) -> Path:
        """Return a new path for `adopt_manifest`."""

    def adopt_manifest(self, digest: str, temp: Path, image_bytes: int) -> object:
        """Move the manifest at `temp` into the store, with a partial image of `image_bytes`."""


@dataclass(eq=False)
class _ResolveJob(Job):
    """A running resolve of `resolver`, which can be stopped through the call.

    The manifest is stored if its digest is `expected_digest`, or that is None; `difference` describes how
    another one differs.
    """

    resolver: Resolver
    spec: CacheSpec
    secrets: Secrets
    expected_digest: str | None
    call: WorkerCall = field(default_factory=WorkerCall)
    result: Resolution | None = None
    difference: str = ""

    def run(self) -> None:
        self.result = self.resolver.resolve_at_origin(self)

    def stop(self) -> None:
        self.call.stop()


class Resolver:
    """Resolver of specs for one plugin.

    With `refresh_moving`, a spec that can move (a branch, a NAS) is resolved at the origin each time, as
    creating a volume requires; otherwise a fresh proof is enough, as for mounting one. With `manifests`, as
    on a node, the manifest of each resolution is stored there, unless another digest was expected.

    A resolve that no call has waited for during ten minutes is stopped, since an origin may never finish.
    """

    def __init__(
        self,
        pool: WorkerPool,
        proofs: ProofMemory,
        wait_limiter: WaitLimiter,
        *,
        refresh_moving: bool,
        manifests: ManifestStore | None = None,
    ) -> None:
        self._pool, self._proofs, self._wait_limiter = pool, proofs, wait_limiter
        self._refresh_moving = refresh_moving
        self._manifests = manifests
        self._flights = SingleFlight[str, _ResolveJob]("resolve", _ABANDONED_TIMEOUT)

    def resolve(
        self,
        volume_id: str,
        spec: CacheSpec,
        secrets: Secrets,
        deadline: Deadline,
        expected_digest: str | None = None,
        force_refresh: bool = False,
    ) -> Resolution:
        """Resolve `spec`, once this credential has read bytes of it.

        `volume_id` is the volume whose call waits. `force_refresh` is `refresh_moving` for this call.

        Raises SourceChanged if the manifest's digest is not `expected_digest`, Busy if `deadline` ends first
        (the work goes on and the next call joins it), and the errors of a Source.
        """
        if not ((self._refresh_moving or force_refresh) and spec.is_moving):
            proven = self._proofs.find_fresh(secrets, spec)
            if proven and self._is_usable(proven, expected_digest):
                return proven

        def describe(job: _ResolveJob) -> str:
            return f"still resolving {spec.source.display_name}; call again, the work goes on"

        key = self._proofs.get_key(secrets, spec)
        # A copy of the credential: the work may outlast the call that owns the mapping.
        new_job = _ResolveJob(self, spec, Secrets(dict(secrets.values)), expected_digest)
        with self._wait_limiter.slot(volume_id, deadline):
            job = self._flights.wait(key, new_job, deadline, describe)
        assert job.result is not None
        if expected_digest not in (None, job.result.digest):
            difference = job.difference or "its manifest differs"
            raise SourceChanged(
                f"{spec.source.display_name} has changed since this volume was created ({difference}); "
                "create a new volume to use its current content"
            )
        return job.result

    def _is_usable(self, proven: Resolution, expected_digest: str | None) -> bool:
        """Return whether a proof suffices; if not, the origin is asked in spite of it.

        That is so for a proof of another digest, too: the source may have changed back since.
        """
        is_expected = expected_digest in (None, proven.digest)
        return is_expected and (self._manifests is None or self._manifests.has_manifest(proven.digest))

    def resolve_at_origin(self, job: _ResolveJob) -> Resolution:
        """Resolve a job's spec at its origin and remember the proof; called in the job's own thread."""
        spec, secrets = job.spec, job.secrets
        # All specs of this call: a proof is stored, or forgotten, for each of them.
        specs = {spec}
        try:
            pinned = self._pin(job.call, spec, secrets)
            specs.add(pinned)
            # A branch that still points to a proven commit needs no second listing.
            known = None if pinned.is_unpinnable else self._proofs.find_fresh(secrets, pinned)
            if known and self._is_usable(known, job.expected_digest):
                self._proofs.share_proof(secrets, pinned, spec)
                return known
            resolution = self._resolve_in_worker(job, pinned)
        except OriginUnavailable as error:
            known = self._proofs.find_within_grace(secrets, spec)
            if known is None or not self._is_usable(known, job.expected_digest):
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

    def _resolve_in_worker(self, job: _ResolveJob, pinned: CacheSpec) -> Resolution:
        if self._manifests is None:
            return self._pool.call("resolve", ResolveSource(pinned, job.secrets), job.call)
        temp_path = self._manifests.new_temp_path()
        try:
            resolution = self._pool.call("resolve", ResolveSource(pinned, job.secrets, temp_path), job.call)
            if job.expected_digest in (None, resolution.digest):
                self._manifests.adopt_manifest(resolution.digest, temp_path, resolution.image_bytes)
            else:
                job.difference = _describe_change(self._manifests, job.expected_digest, temp_path)
            return resolution
        finally:
            # Only there if it was not adopted: that moves it.
            temp_path.unlink(missing_ok=True)


def _describe_change(manifests: ManifestStore, digest: str | None, new_manifest: Path) -> str:
    """Describe how a manifest differs from that of `digest`; "" if the latter is not stored."""
    with suppress(DataCacheError), new_manifest.open("rb") as stream:
        return describe_changes(manifests.read_manifest(digest or ""), Manifest.read(stream))
    return ""
