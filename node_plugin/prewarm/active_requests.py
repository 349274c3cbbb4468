"""The prewarm requests that select this node, synchronized with the registry.

What their caches resolved to is stored in a file, so that a restart does not resolve a moving source again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from csi.errors import NotFound
from csi.images.node_store.store import Store
from csi.registry.prewarms.prewarms import NodePrewarms, PrewarmRequest
from node_plugin.prewarm.active_request import ActiveRequest
from node_plugin.prewarm.request_changes import RequestChanges
from node_plugin.prewarm.resolved_caches import ResolvedCache, read_resolved, write_resolved
from node_plugin.volumes.pins import NodePins
from node_plugin.volumes.records import NodeVolume

_FILE_NAME = "prewarms.json"
# Seconds. No event tells of changed labels of the node or of a corrected Secret; no pod waits, so polling may
# be slow.
RESYNC_INTERVAL = 300.0
# Requests, those for other nodes too, may change faster than a node can list them: after a listing, the node
# works for at least nine times as long as that took.
_MIN_WORK_SECONDS, _WORK_SHARE = 1.0, 9.0


class ActiveRequests:
    """The requests for this node, with what their caches resolved to.

    `on_released(digest)` is called for an image that no request needs any more.
    """

    def __init__(
        self,
        prewarms: NodePrewarms,
        store: Store,
        pins: NodePins,
        changes: RequestChanges,
        on_released: Callable[[str], None],
    ) -> None:
        self._prewarms, self._store, self._pins, self._changes = prewarms, store, pins, changes
        self._on_released = on_released
        self._file = store.root / _FILE_NAME
        # None: a request has changed since they were listed.
        self._requests: list[PrewarmRequest] | None = None
        self._synced_at = float("-inf")
        self._active: dict[str, ActiveRequest] = {}
        self._resolved = read_resolved(self._file)
        self._digests = frozenset(cache.digest for cache in self._resolved.values())
        # To the pins, a prewarmed cache is an inline volume whose id is its key.
        self._pins.restore(
            NodeVolume(key, cache.digest, {}, 0, 0, True, pin=cache.pin)
            for key, cache in self._resolved.items()
        )

    def list_sealed(self) -> set[str]:
        """List the digests of sealed images that requests for this node keep from eviction.

        For any thread.
        """
        return {digest for digest in self._digests if self._store.find_sealed(digest)}

    def list_by_longest_wait(self) -> list[ActiveRequest]:
        """Return the requests, the one that waits longest first.

        Each gets its turn, even if frequent changes end every round after a few requests.
        """
        return sorted(self._active.values(), key=lambda active: active.last_worked_at)

    def sync(self) -> None:
        """List the requests for this node if they may have changed, and release caches that none requests.

        Raises as NodePrewarms.
        """
        if self._changes.take():
            self._requests = None
        if self._requests is not None and time.monotonic() - self._synced_at < RESYNC_INTERVAL:
            return
        started_at = time.monotonic()
        requests = self._prewarms.list_requests() if self._requests is None else self._requests
        requests_by_key = {request.key: request for request in requests}
        # A request to the API server, so only if a request selects nodes by label.
        labels = self._read_node_labels() if any(request.selector for request in requests) else {}
        self._requests, self._synced_at = requests, time.monotonic()
        for key in {key for key, request in requests_by_key.items() if not request.selects_node(labels)}:
            request = requests_by_key.pop(key)
            if key in self._active:
                self._prewarms.report_state(request, None)
        active = {}
        for key, request in requests_by_key.items():
            known = self._active.get(key)
            is_unchanged = known is not None and known.request == request
            active[key] = known if known and is_unchanged else self._activate(request)
        self._release_dropped(active)
        self._active = active
        self._changes.work_for(max(_MIN_WORK_SECONDS, _WORK_SHARE * (time.monotonic() - started_at)))

    def set_resolved(self, active: ActiveRequest, key: str, resolved: ResolvedCache) -> None:
        """Store what a cache of a request resolved to."""
        if active.resolved.get(key) != resolved:
            active.resolved[key] = resolved
            self._save_resolved({**self._resolved, key: resolved})

    def _read_node_labels(self) -> Mapping[str, str]:
        try:
            return self._prewarms.read_node_labels()
        except NotFound:
            return {}

    def _activate(self, request: PrewarmRequest) -> ActiveRequest:
        active = ActiveRequest(request)
        active.resolved = {key: self._resolved[key] for key in active.keys if key in self._resolved}
        return active

    def _release_dropped(self, active: Mapping[str, ActiveRequest]) -> None:
        remaining = {key: cache for request in active.values() for key, cache in request.resolved.items()}
        # Another request may need the same image, whose fill then goes on.
        digests = {cache.digest for cache in remaining.values()}
        for key, cache in self._resolved.items():
            if key not in remaining:
                self._pins.release(key)
                if cache.digest not in digests:
                    self._on_released(cache.digest)
        if remaining.keys() != self._resolved.keys():
            self._save_resolved(remaining)

    def _save_resolved(self, resolved: dict[str, ResolvedCache]) -> None:
        self._resolved = resolved
        self._digests = frozenset(cache.digest for cache in resolved.values())
        write_resolved(self._file, resolved)
