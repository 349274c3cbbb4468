"""Prewarming of one cache of a request: resolve, fill and, for a DataCache, upload."""

from __future__ import annotations

from csi.concurrency.deadline import Deadline
from csi.errors import Busy, FailedPrecondition
from csi.images.node_store.store import Store
from csi.parameters.content_ref import ContentRef, Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.registry.prewarms.prewarms import NodePrewarms, NodePrewarmState, PrewarmedCache, PrewarmState
from node_plugin.fills.fill_events import compute_percent
from node_plugin.fills.uploads import Uploads
from node_plugin.prewarm.active_request import ActiveRequest
from node_plugin.prewarm.active_requests import ActiveRequests
from node_plugin.prewarm.request_changes import RequestChanges
from node_plugin.prewarm.resolved_caches import ResolvedCache
from node_plugin.prewarm.state_reporter import StateReporter
from node_plugin.volumes.preparation import VolumePreparation

# Seconds. A fill is waited for in slices, to report its progress in between.
_RESOLVE_TIMEOUT, _SLICE_SECONDS = 100.0, 2.0


class CachePrewarmer:
    """Prewarmer of caches, one at a time; a request that changes meanwhile ends the work with Busy.

    `preparation` resolves moving sources at the origin, in spite of earlier proofs.
    """

    def __init__(
        self,
        prewarms: NodePrewarms,
        preparation: VolumePreparation,
        store: Store,
        requests: ActiveRequests,
        changes: RequestChanges,
        uploads: Uploads | None,
        reporter: StateReporter,
    ) -> None:
        self._prewarms, self._preparation, self._store = prewarms, preparation, store
        self._fills, self._pins = preparation.fills, preparation.pins
        self._requests, self._changes, self._uploads = requests, changes, uploads
        self._reporter = reporter

    def is_ready(self, cache: PrewarmedCache, resolved: ResolvedCache | None) -> bool:
        """Return whether the image is sealed on this node and, for a DataCache, in the image store if any."""
        if resolved is None or self._store.find_sealed(resolved.digest) is None:
            return False
        return not cache.data_cache or self._uploads is None or self._uploads.is_uploaded(resolved.digest)

    def is_in_progress(self, active: ActiveRequest) -> bool:
        """Return whether a fill or upload of the request is running."""
        digests = {cache.digest for cache in active.resolved.values()}
        return not digests.isdisjoint(self._fills.get_progress()) or bool(
            self._uploads and any(map(self._uploads.get_progress, digests))
        )

    def prewarm(self, active: ActiveRequest, key: str, cache: PrewarmedCache) -> None:
        """Return when `is_ready` is true of the cache with this key.

        Raises Busy if it has to wait or the request has changed, and what resolving, filling and uploading
        raise.
        """
        if cache.data_cache:
            self._prewarm_data_cache(active, key, cache)
            return
        secrets = Secrets()
        if cache.secret_name:
            secrets = Secrets(self._prewarms.read_secret(active.request.namespace, cache.secret_name))
        deadline = self._changes.new_deadline(_RESOLVE_TIMEOUT)
        resolved = active.resolved.get(key)
        if resolved is None or not self._store.has_manifest(resolved.digest):
            resolved = self._resolve(active, key, cache, secrets, deadline)
        self._fill(active, ContentRef(resolved.digest, resolved.access, secrets))

    def _prewarm_data_cache(self, active: ActiveRequest, key: str, cache: PrewarmedCache) -> None:
        """Fill a DataCache with its own credential, then upload it to the image store, if any."""
        grants = self._preparation.grants
        if grants is None or self._uploads is None:
            raise FailedPrecondition(
                "this node has no registry of DataCaches; start the node plugin with --registry"
            )
        granted = grants.authorize_prewarm(cache.data_cache, active.request.namespace)
        content = granted.content_ref
        if cache.digest not in ("", content.digest):
            raise Busy(
                f"the DataCache {cache.data_cache} still holds {content.digest[:12]}, "
                f"and {cache.digest[:12]} was requested"
            )
        grants.ensure_manifest(key, granted, self._changes.new_deadline(_RESOLVE_TIMEOUT))
        self._requests.set_resolved(active, key, ResolvedCache(content.digest, dict(content.source)))
        self._fill(active, content)
        is_trusted = grants.has_trusted_bytes(granted)
        self._preparation.ensure_verified(
            key, content, is_trusted, self._changes.new_deadline(_RESOLVE_TIMEOUT)
        )
        self._upload(active, content, self._uploads)

    def _resolve(
        self, active: ActiveRequest, key: str, cache: PrewarmedCache, secrets: Secrets, deadline: Deadline
    ) -> ResolvedCache:
        """Resolve the cache with its credential, and record the result; the store then has its manifest."""
        prepare, known = self._preparation, active.resolved.get(key)
        if known:
            spec = parse_volume_parameters(known.access).spec
            resolution = prepare.resolve_spec(key, spec, known.digest, secrets, deadline)
        elif cache.pvc_name:
            record = self._prewarms.get_volume_of_pvc(active.request.namespace, cache.pvc_name)
            resolution = prepare.resolve_spec(key, record.spec, record.digest, secrets, deadline)
        else:
            parameters = parse_volume_parameters(cache.parameters)
            namespace = active.request.namespace
            with self._pins.keep_on_success(key):
                resolution = prepare.resolve_untrusted(key, namespace, parameters, secrets, deadline)
        resolved = ResolvedCache(
            resolution.digest,
            resolution.spec.to_context(),
            known.pin if known else self._pins.encode_pin(key),
        )
        self._requests.set_resolved(active, key, resolved)
        return resolved

    def _fill(self, active: ActiveRequest, content: ContentRef) -> None:
        while not self._store.find_sealed(content.digest):
            try:
                self._fills.prefetch(content, self._changes.new_deadline(_SLICE_SECONDS))
            except Busy:
                # A running prefetch goes on; a preempted one waits for its next turn.
                if self._changes.should_yield or content.digest not in self._fills.get_progress():
                    raise
                self._reporter.report_filling(active)

    def _upload(self, active: ActiveRequest, content: ContentRef, uploads: Uploads) -> None:
        while not uploads.is_uploaded(content.digest):
            deadline = self._changes.new_deadline(_SLICE_SECONDS)
            try:
                uploads.wait_until_uploaded(content.digest, deadline, content.source)
            except Busy:
                progress = uploads.get_progress(content.digest)
                if self._changes.should_yield or progress is None:
                    raise
                percent = min(99, compute_percent(progress))
                self._reporter.report_if_changed(
                    active, NodePrewarmState(PrewarmState.STORING, percent, "uploading to the image store")
                )
