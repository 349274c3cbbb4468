"""Moves one DataCache toward what its spec asks for: named, resolved, on a node or in the image store, then Available."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from controller_plugin.operator.data_cache_index import KnownCaches
from controller_plugin.operator.reconcile.images import Images
from csi.destinations.allow_list import AllowList
from csi.errors import AlreadyExists, Busy, ClusterUnavailable, DataCacheError, FailedPrecondition, OriginUnavailable, OutOfRange
from csi.parameters.data_cache import split_secrets
from csi.parameters.origin_scope import is_of_place
from csi.performance.capacity import GIB
from csi.registry.datacaches.data_caches import SECONDS_OF_A_DAY, Content, DataCache, DataCaches, DataCacheState, Note, Phase
from csi.registry.prewarms.prewarms import State
from csi.registry.prewarms.requests import OrderState, PrewarmOrders

log = logging.getLogger("datacache.operator")

MOST_NOTES = 16
_BUSY_SECONDS, _FIRST_RETRY, _LONGEST_RETRY, _LOOK_SECONDS, _NODE_SECONDS = 2.0, 15.0, 600.0, 300.0, 30.0
# How often the image store is asked whether it still has what was Available from it.
_KEPT_SECONDS = 3600.0
_READY = (Phase.AVAILABLE, Phase.UPDATING, Phase.UPDATE_FAILED)


class Reconciler:
    """Looks at DataCaches, each by one thread at a time. `clock` gives seconds since 1970."""

    def __init__(
        self,
        caches: DataCaches,
        known: KnownCaches,
        images: Images,
        orders: PrewarmOrders,
        allowed: AllowList,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._caches, self._known, self._images, self._orders = caches, known, images, orders
        self._allowed, self._clock = allowed, clock
        self._pauses: dict[str, float] = {}
        self._asked: dict[str, float] = {}

    def look(self, name: str) -> float | None:
        """Do what is to be done for one DataCache now; the seconds until it wants to be looked at again, None for when it changes."""
        cache = self._known.named(name)
        if cache is None:
            self._pauses.pop(name, None)
            self._asked.pop(name, None)
            return None
        expires = self._expires(cache)
        if expires and expires <= self._clock():
            log.info("a DataCache has expired", extra={"fields": {"object": name, "days": cache.spec.retention_days}})
            self._caches.delete(cache)
            return None
        state, pause = self._looked(cache)
        self._put(cache, replace(state, expires=expires))
        return min(pause, max(1.0, expires - self._clock())) if expires else pause

    def _expires(self, cache: DataCache) -> float:
        days = cache.spec.retention_days
        return float(int(cache.created + days * SECONDS_OF_A_DAY)) if days else 0.0

    def _looked(self, cache: DataCache) -> tuple[DataCacheState, float]:
        try:
            found = self._moved(cache)
            self._pauses.pop(cache.name, None)
            return found
        except Busy as error:
            return self._going_on(self._now(cache), str(error)), _BUSY_SECONDS
        except (OriginUnavailable, ClusterUnavailable) as error:
            pause = self._pauses[cache.name] = min(2 * self._pauses.get(cache.name, _FIRST_RETRY / 2), _LONGEST_RETRY)
            return self._failing(self._now(cache), error), pause
        except DataCacheError as error:
            return self._failing(self._now(cache), error), _LONGEST_RETRY

    def _now(self, cache: DataCache) -> DataCache:
        """The cache with the state that was put last."""
        known = self._known.named(cache.name)
        return replace(cache, state=known.state) if known and known.uid == cache.uid else cache

    def _moved(self, cache: DataCache) -> tuple[DataCacheState, float]:
        if self._secrets_moved(cache):
            raise Busy("its credential is moved into a Secret")
        self._check_place(cache)
        state = cache.state
        is_new = state.generation != cache.generation or (state.coming is None and state.phase is not Phase.AVAILABLE)
        if is_new:
            state = self._resolved(cache)
            # Nodes look it up there: an order before would be one for what it held until now.
            self._put(cache, state)
            cache = replace(cache, state=state)
        if state.coming is None:
            return self._kept_up(cache), _LOOK_SECONDS
        order = self._orders.place(cache)
        if is_new and order == OrderState(message=order.message):
            return state, _LOOK_SECONDS
        return self._nearer(cache, order)

    def _check_place(self, cache: DataCache) -> None:
        first = self._known.at(cache.spec.bucket, cache.spec.path)
        if first and first.uid != cache.uid:
            raise AlreadyExists(f"{cache.spec.shown} is the name of the DataCache {first.name} already; delete one of them")

    def _secrets_moved(self, cache: DataCache) -> bool:
        """Whether its options had credentials, which are in a Secret now; empty ones are none."""
        options, secrets = split_secrets(cache.spec.options)
        if options == cache.spec.options:
            return False

        def without(now: DataCache) -> DataCache:
            return replace(now, spec=now.spec.with_options(split_secrets(now.spec.options)[0]))

        self._caches.change(cache, without, secrets)
        return True

    def _resolved(self, cache: DataCache) -> DataCacheState:
        """What it is to hold, and whether that is there already."""
        state = cache.state
        cache.spec.check()
        if not cache.spec.snapshot_id:
            self._allowed.check(cache.spec.parameters())
        if not self._caches.credential_fits(cache):
            raise FailedPrecondition(
                "its credential was given for another kind of source or other hosts; give one for this source among dataSource.options, "
                "or remove dataSource.secretRef"
            )
        content = self._images.resolve(cache, self._caches.credential(cache))
        _check_size(cache, content)
        said = f"it holds {content.content_bytes} bytes, image {content.digest[:12]}"
        state = self._noted(replace(state, generation=cache.generation, expires=self._expires(cache), message=""), "Normal", "Resolved", said)
        elsewhere = self._elsewhere(cache, content)
        is_kept = self._is_kept(content) or bool(elsewhere and elsewhere.is_kept)
        is_here = state.content is not None and state.content.digest == content.digest
        if is_kept or elsewhere or is_here:
            self._asked[cache.name] = self._clock()
            return self._available(state, content, is_kept)
        return replace(state, phase=Phase.UPDATING if state.content else Phase.LOADING, percent=0, coming=content)

    def _is_kept(self, content: Content) -> bool:
        """Whether the image store has it, as it was filled from this very place: a listing is no proof of having the bytes."""
        try:
            kept = self._images.kept(content.digest)
        except DataCacheError:
            return False
        return kept is not None and is_of_place(kept.access, content.access)

    def _elsewhere(self, cache: DataCache, content: Content) -> DataCacheState | None:
        """The state of another DataCache of the same place that has it."""
        for other in self._known.all():
            held = other.state.content if other.uid != cache.uid and other.state.phase is Phase.AVAILABLE else None
            if held and held.digest == content.digest and is_of_place(held.access, content.access):
                return other.state
        return None

    def _kept_up(self, cache: DataCache) -> DataCacheState:
        """The state of one that is Available: nodes keep it where they are named, or until the image store has it. It stays Available."""
        state = replace(cache.state, is_kept=self._still_kept(cache), message="")
        try:
            if cache.spec.node_selector or not state.is_kept:
                order = self._orders.place(replace(cache, state=state))
                return self._placed(cache, state, order)
            self._orders.drop(cache)
        except DataCacheError as error:
            return replace(state, message=str(error))
        return state

    def _placed(self, cache: DataCache, state: DataCacheState, order: OrderState) -> DataCacheState:
        if not order.placed:
            return replace(state, message=order.message)
        if state.is_kept or order.state is not State.READY or not self._images.has_store:
            return state
        there = self._is_there(cache, state.content)
        if there is False:
            # The node brings it once more with another order.
            self._orders.drop(cache)
            return replace(
                state, message="a node is done with it, and the image store does not have it; give nodes and operator the same --image-store"
            )
        return replace(state, is_kept=bool(there))

    def _still_kept(self, cache: DataCache) -> bool:
        """Whether the image store has it, asked now and then: people remove images there. One that does not answer has it."""
        state = cache.state
        if not state.is_kept or self._clock() - self._asked.setdefault(cache.name, self._clock()) < _KEPT_SECONDS:
            return state.is_kept
        return self._is_there(cache, state.content) is not False

    def _is_there(self, cache: DataCache, content: Content | None) -> bool | None:
        """Whether the image store has an image; None where it does not say."""
        self._asked[cache.name] = self._clock()
        try:
            return content is not None and self._images.kept(content.digest) is not None
        except DataCacheError:
            return None

    def _nearer(self, cache: DataCache, order: OrderState) -> tuple[DataCacheState, float]:
        state, coming = cache.state, cache.state.coming
        assert coming is not None
        if not order.placed:
            return replace(state, message=order.message), _NODE_SECONDS
        if order.state is State.READY:
            is_kept = self._images.has_store and self._is_there(cache, coming) is True
            ready = self._available(state, coming, is_kept)
            return self._kept_up(replace(cache, state=ready)), _LOOK_SECONDS
        if order.state is State.FAILED:
            return self._failing(cache, DataCacheError(order.message)), _LOOK_SECONDS
        phase = Phase.UPDATING if state.content else Phase.CREATING if order.state is State.STORING else Phase.LOADING
        return replace(state, phase=phase, percent=order.percent, message=order.message), _LOOK_SECONDS

    def _available(self, state: DataCacheState, content: Content, is_kept: bool) -> DataCacheState:
        ready = replace(state, phase=Phase.AVAILABLE, percent=100, content=content, coming=None, is_kept=is_kept, message="")
        return self._noted(ready, "Normal", "Available", f"image {content.digest[:12]} is {'in the image store' if is_kept else 'on a node'}")

    def _going_on(self, cache: DataCache, message: str) -> DataCacheState:
        state = cache.state
        phase = Phase.UPDATING if state.content else Phase.CREATING if state.phase is Phase.CREATING else Phase.LOADING
        return replace(state, phase=phase, message=message)

    def _failing(self, cache: DataCache, error: DataCacheError) -> DataCacheState:
        state = cache.state
        phase = Phase.UPDATE_FAILED if state.content else Phase.FAILED
        # What an earlier spec was to hold is of no use to this one.
        coming = state.coming if state.generation == cache.generation else None
        failed = replace(state, phase=phase, generation=cache.generation, coming=coming, message=str(error))
        return self._noted(failed, "Warning", phase.value, str(error))

    def _noted(self, state: DataCacheState, kind: str, reason: str, message: str) -> DataCacheState:
        """The state with one more note, or the last one counted once more where it says the same."""
        now = float(int(self._clock()))
        last = state.notes[-1] if state.notes else None
        if last and (last.kind, last.reason, last.message) == (kind, reason, message):
            return replace(state, notes=(*state.notes[:-1], replace(last, count=last.count + 1, last=now)))
        return replace(state, notes=(*state.notes, Note(kind, reason, message, 1, now, now))[-MOST_NOTES:])

    def _put(self, cache: DataCache, state: DataCacheState) -> None:
        if state != self._now(cache).state:
            self._caches.report(cache, state)
            self._known.put_state(cache, state)


def _check_size(cache: DataCache, content: Content) -> None:
    if cache.spec.size_gib and content.content_bytes > cache.spec.size_gib * GIB:
        raise OutOfRange(f"the source holds {content.content_bytes} bytes and size is {cache.spec.size_gib} GiB; give a larger size, or none")
