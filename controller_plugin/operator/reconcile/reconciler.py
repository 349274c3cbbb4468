"""Reconciler that moves a DataCache toward its spec: resolved, filled or stored, then Available."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from controller_plugin.operator.data_cache_index import DataCacheIndex
from controller_plugin.operator.reconcile.images import DataCacheImages
from csi.destinations.allow_list import AllowList
from csi.errors import (
    AlreadyExists,
    Busy,
    ClusterUnavailable,
    DataCacheError,
    FailedPrecondition,
    OriginUnavailable,
    OutOfRange,
)
from csi.parameters.data_cache import split_secrets
from csi.parameters.origin_scope import has_same_origin_scope
from csi.performance.capacity import GIB
from csi.registry.datacaches.data_caches import (
    SECONDS_PER_DAY,
    DataCache,
    DataCacheContent,
    DataCacheEvent,
    DataCacheRegistry,
    DataCacheState,
    MalformedDataCache,
    Phase,
)
from csi.registry.prewarms.prewarms import PrewarmState
from csi.registry.prewarms.requests import PrewarmProgress, PrewarmRequests

log = logging.getLogger("datacache.operator")

MAX_EVENTS = 16
_BUSY_RETRY_INTERVAL, _RESYNC_INTERVAL, _NO_NODE_RETRY_INTERVAL = 2.0, 300.0, 30.0
_MIN_BACKOFF, _MAX_BACKOFF = 15.0, 600.0
# How often to check that images of Available caches are still in the image store.
_IMAGE_STORE_CHECK_INTERVAL = 3600.0


class Reconciler:
    """Reconciler of DataCaches; each is handled by one thread at a time.

    `clock` returns seconds since 1970.
    """

    def __init__(
        self,
        registry: DataCacheRegistry,
        index: DataCacheIndex,
        images: DataCacheImages,
        prewarm_requests: PrewarmRequests,
        allow_list: AllowList,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry, self._index, self._images, self._prewarm_requests = (
            registry,
            index,
            images,
            prewarm_requests,
        )
        self._allow_list, self._clock = allow_list, clock
        self._backoffs: dict[str, float] = {}
        self._store_checked_at: dict[str, float] = {}

    def reconcile(self, name: str) -> float | None:
        """Reconcile one DataCache; return the seconds until the next time, None to wait for a change."""
        cache = self._index.get(name)
        if cache is None:
            return self._reconcile_missing(name)
        expires_at = self._compute_expiry(cache)
        if expires_at and expires_at <= self._clock():
            log.info(
                "DataCache expired",
                extra={"fields": {"object": name, "days": cache.spec.retention_days}},
            )
            self._registry.delete(cache)
            return None
        state, delay = self._reconcile_or_record_error(cache)
        self._write_state(cache, replace(state, expires_at=expires_at))
        return min(delay, max(1.0, expires_at - self._clock())) if expires_at else delay

    def _reconcile_missing(self, name: str) -> float | None:
        """Withdraw the request of a deleted DataCache, so that nodes may evict its image.

        A malformed one gets a status that says what to correct, and keeps its image.
        """
        self._backoffs.pop(name, None)
        self._store_checked_at.pop(name, None)
        try:
            exists = self._registry.get(name) is not None
        except MalformedDataCache as error:
            self._registry.write_malformed(name, str(error))
            return _RESYNC_INTERVAL
        if not exists:
            self._prewarm_requests.cancel(name)
            return None
        # The watch is behind, or reports nothing since the status alone was malformed.
        self._index.fetch_missing(self._registry.find)
        return _BUSY_RETRY_INTERVAL

    def _compute_expiry(self, cache: DataCache) -> float:
        days = cache.spec.retention_days
        return float(int(cache.created_at + days * SECONDS_PER_DAY)) if days else 0.0

    def _reconcile_or_record_error(self, cache: DataCache) -> tuple[DataCacheState, float]:
        try:
            state_and_delay = self._advance(cache)
            self._backoffs.pop(cache.name, None)
            return state_and_delay
        except Busy as error:
            return self._loading_state(self._with_current_state(cache), str(error)), _BUSY_RETRY_INTERVAL
        except (OriginUnavailable, ClusterUnavailable) as error:
            delay = self._backoffs[cache.name] = min(
                2 * self._backoffs.get(cache.name, _MIN_BACKOFF / 2), _MAX_BACKOFF
            )
            return self._failed_state(self._with_current_state(cache), error), delay
        except DataCacheError as error:
            return self._failed_state(self._with_current_state(cache), error), _MAX_BACKOFF

    def _with_current_state(self, cache: DataCache) -> DataCache:
        """Return the cache with the state written last."""
        indexed = self._index.get(cache.name)
        return replace(cache, state=indexed.state) if indexed and indexed.uid == cache.uid else cache

    def _advance(self, cache: DataCache) -> tuple[DataCacheState, float]:
        if self._move_credential_to_secret(cache):
            raise Busy("its credential is being moved into a Secret")
        self._check_unique_name(cache)
        state = cache.state
        # A changed spec, or a resolve that failed and is tried again.
        needs_resolve = state.generation != cache.generation or (
            state.next_content is None and state.phase is not Phase.AVAILABLE
        )
        if needs_resolve:
            state = self._resolve(cache)
            # Nodes read the content from the state: a request submitted before would be for the old content.
            self._write_state(cache, state)
            cache = replace(cache, state=state)
        if state.next_content is None:
            return self._maintain_available(cache), _RESYNC_INTERVAL
        progress = self._prewarm_requests.submit(cache)
        # Keep the state just written until a node has begun.
        if needs_resolve and progress.has_node and not progress.has_started:
            return state, _RESYNC_INTERVAL
        return self._track_prewarm(cache, progress)

    def _check_unique_name(self, cache: DataCache) -> None:
        first = self._index.find_by_path(cache.spec.bucket, cache.spec.path)
        if first and first.uid != cache.uid:
            raise AlreadyExists(
                f"{cache.spec.display_name} is the name of the DataCache {first.name} already; "
                "delete one of them"
            )

    def _move_credential_to_secret(self, cache: DataCache) -> bool:
        """Move credentials from the options into a Secret, and remove empty ones.

        Return whether there were any.
        """
        options, secrets = split_secrets(cache.spec.options)
        if options == cache.spec.options:
            return False

        def remove_credential(current: DataCache) -> DataCache:
            return replace(current, spec=current.spec.with_options(split_secrets(current.spec.options)[0]))

        self._registry.change(cache, remove_credential, secrets)
        return True

    def _resolve(self, cache: DataCache) -> DataCacheState:
        """Resolve the source, and make the cache Available at once if its content already is."""
        state = cache.state
        cache.spec.check()
        if not cache.spec.snapshot_id:
            self._allow_list.check(cache.spec.to_volume_parameters())
        if not self._registry.is_credential_in_scope(cache):
            raise FailedPrecondition(
                "its credential was given for another kind of source or other hosts; "
                "give one for this source among dataSource.options, "
                "or remove dataSource.secretRef"
            )
        content = self._images.resolve(cache, self._registry.read_credential(cache))
        _check_size(cache, content)
        message = f"it holds {content.content_bytes} bytes, image {content.digest[:12]}"
        state = self._with_event(
            replace(state, generation=cache.generation, expires_at=self._compute_expiry(cache), message=""),
            "Normal",
            "Resolved",
            message,
        )
        other_state = self._find_available_with_same_content(cache, content)
        in_image_store = self._is_in_image_store(content) or bool(other_state and other_state.in_image_store)
        is_current = state.content is not None and state.content.digest == content.digest
        if in_image_store or other_state or is_current:
            self._store_checked_at[cache.name] = self._clock()
            return self._available_state(state, content, in_image_store)
        return replace(
            state, phase=Phase.UPDATING if state.content else Phase.LOADING, percent=0, next_content=content
        )

    def _is_in_image_store(self, content: DataCacheContent) -> bool:
        """Return whether the image store has the image, filled from this very origin.

        An equal listing alone does not prove access to the bytes.
        """
        try:
            stored = self._images.find_in_image_store(content.digest)
        except DataCacheError:
            return False
        return stored is not None and has_same_origin_scope(stored.access, content.access)

    def _find_available_with_same_content(
        self, cache: DataCache, content: DataCacheContent
    ) -> DataCacheState | None:
        """Return the state of another Available cache from the same origin with this content, or None."""
        for other in self._index.list_all():
            other_content = (
                other.state.content
                if other.uid != cache.uid and other.state.phase is Phase.AVAILABLE
                else None
            )
            if (
                other_content
                and other_content.digest == content.digest
                and has_same_origin_scope(other_content.access, content.access)
            ):
                return other.state
        return None

    def _maintain_available(self, cache: DataCache) -> DataCacheState:
        """Return the next state of an Available cache, which stays Available.

        Nodes keep the image if the spec selects some, or until the image store has it.
        """
        state = replace(cache.state, in_image_store=self._is_still_in_image_store(cache), message="")
        try:
            if cache.spec.node_selector or not state.in_image_store:
                progress = self._prewarm_requests.submit(replace(cache, state=state))
                return self._track_upload(cache, state, progress)
            self._prewarm_requests.cancel(cache.name)
        except DataCacheError as error:
            return replace(state, message=str(error))
        return state

    def _track_upload(
        self, cache: DataCache, state: DataCacheState, progress: PrewarmProgress
    ) -> DataCacheState:
        if not progress.has_node:
            return replace(state, message=progress.message)
        if (
            state.in_image_store
            or progress.state is not PrewarmState.READY
            or not self._images.has_image_store
        ):
            return state
        in_store = self._check_image_store(cache, state.content)
        if in_store is False:
            # A new request makes the node upload the image again.
            self._prewarm_requests.cancel(cache.name)
            return replace(
                state,
                message="a node has finished, but the image store does not have the image; "
                "give nodes and operator the same --image-store",
            )
        return replace(state, in_image_store=bool(in_store))

    def _is_still_in_image_store(self, cache: DataCache) -> bool:
        """Return whether the image store has the image.

        It is asked now and then, since people may remove images there; if it does not answer, it counts as
        having it.
        """
        state = cache.state
        if (
            not state.in_image_store
            or self._clock() - self._store_checked_at.setdefault(cache.name, self._clock())
            < _IMAGE_STORE_CHECK_INTERVAL
        ):
            return state.in_image_store
        return self._check_image_store(cache, state.content) is not False

    def _check_image_store(self, cache: DataCache, content: DataCacheContent | None) -> bool | None:
        """Return whether the image store has an image, None if it does not answer."""
        self._store_checked_at[cache.name] = self._clock()
        try:
            return content is not None and self._images.find_in_image_store(content.digest) is not None
        except DataCacheError:
            return None

    def _track_prewarm(self, cache: DataCache, progress: PrewarmProgress) -> tuple[DataCacheState, float]:
        state, next_content = cache.state, cache.state.next_content
        assert next_content is not None
        if not progress.has_node:
            return replace(state, message=progress.message), _NO_NODE_RETRY_INTERVAL
        if progress.state is PrewarmState.READY:
            in_image_store = (
                self._images.has_image_store and self._check_image_store(cache, next_content) is True
            )
            available = self._available_state(state, next_content, in_image_store)
            return self._maintain_available(replace(cache, state=available)), _RESYNC_INTERVAL
        if progress.state is PrewarmState.FAILED:
            return self._failed_state(cache, DataCacheError(progress.message)), _RESYNC_INTERVAL
        phase = (
            Phase.UPDATING
            if state.content
            else Phase.CREATING
            if progress.state is PrewarmState.STORING
            else Phase.LOADING
        )
        return replace(
            state, phase=phase, percent=progress.percent, message=progress.message
        ), _RESYNC_INTERVAL

    def _available_state(
        self, state: DataCacheState, content: DataCacheContent, in_image_store: bool
    ) -> DataCacheState:
        available = replace(
            state,
            phase=Phase.AVAILABLE,
            percent=100,
            content=content,
            next_content=None,
            in_image_store=in_image_store,
            message="",
        )
        return self._with_event(
            available,
            "Normal",
            "Available",
            f"image {content.digest[:12]} is {'in the image store' if in_image_store else 'on a node'}",
        )

    def _loading_state(self, cache: DataCache, message: str) -> DataCacheState:
        state = cache.state
        phase = (
            Phase.UPDATING
            if state.content
            else Phase.CREATING
            if state.phase is Phase.CREATING
            else Phase.LOADING
        )
        return replace(state, phase=phase, message=message)

    def _failed_state(self, cache: DataCache, error: DataCacheError) -> DataCacheState:
        state = cache.state
        phase = Phase.UPDATE_FAILED if state.content else Phase.FAILED
        # Content prepared for an earlier spec is of no use to this one.
        next_content = state.next_content if state.generation == cache.generation else None
        failed = replace(
            state, phase=phase, generation=cache.generation, next_content=next_content, message=str(error)
        )
        return self._with_event(failed, "Warning", phase.value, str(error))

    def _with_event(self, state: DataCacheState, kind: str, reason: str, message: str) -> DataCacheState:
        """Return the state with one more event, or with a higher count if it repeats the last one."""
        now = float(int(self._clock()))
        last = state.events[-1] if state.events else None
        if last and (last.type, last.reason, last.message) == (kind, reason, message):
            return replace(state, events=(*state.events[:-1], replace(last, count=last.count + 1, last=now)))
        return replace(
            state, events=(*state.events, DataCacheEvent(kind, reason, message, 1, now, now))[-MAX_EVENTS:]
        )

    def _write_state(self, cache: DataCache, state: DataCacheState) -> None:
        if state != self._with_current_state(cache).state:
            self._registry.write_state(cache, state)
            self._index.set_state(cache, state)


def _check_size(cache: DataCache, content: DataCacheContent) -> None:
    if cache.spec.size_gib and content.content_bytes > cache.spec.size_gib * GIB:
        raise OutOfRange(
            f"the source holds {content.content_bytes} bytes and size is {cache.spec.size_gib} GiB; "
            "give a larger size, or none"
        )
