"""The pins that this node holds for its inline volumes: one hold for all volumes of one content in a namespace.

What is held is known without asking for a moment, and for longer while the API server is away: the hold keeps the pin there, so that the
answer is still the one that all others get. What is not known waits for the server.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from csi.concurrency.background import background_thread
from csi.errors import Busy, ClusterUnavailable, DataCacheError, NoSpace, OriginUnavailable
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.pinning import pin_name
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.registry.pins.pins import CachePin, PinHolder, PinRegistry
from csi.resolve.pinned import ResolveSpec, resolve_with_pin
from csi.worker.protocol import Resolution
from node_plugin.volumes.records import NodeVolume

log = logging.getLogger("datacache.pins")

# Pods start in storms: those of one moment share an answer.
_PIN_TTL = 2.0
# kubelet comes back within two and a half minutes; a volume that it does not come back for holds nothing.
_RETRY_GRACE = 600.0
_SYNC_INTERVAL, _SYNC_RETRY_INTERVAL = 300.0, 30.0
# After these kubelet keeps the volume in doubt, and comes back or takes it away.
RETRIED_ERRORS = (Busy, NoSpace, OriginUnavailable, ClusterUnavailable)
_Key = tuple[str, str]


@dataclass
class _PinState:
    """What is known of one pin: as of `checked_at` (seconds of the clock), whether this node holds it, and which volumes want that until when."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    pin: CachePin | None = None
    is_held: bool = False
    checked_at: float = float("-inf")
    users: dict[str, float] = field(default_factory=dict)


class NodePins:
    """Pins of the node `name` in `registry`; without one there are none. `clock` is monotonic seconds. Thread-safe."""

    def __init__(
        self, registry: PinRegistry | None = None, name: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._holder, self._clock = registry, PinHolder("node", name), clock
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._pins: dict[_Key, _PinState] = {}
        self._has_adopted_strays = False

    def resolve_with_pin(
        self, volume_id: str, namespace: str, requested: CacheSpec, resolve: ResolveSpec
    ) -> Resolution:
        """What `requested` means in `namespace`, held for the volume until `release`. See `resolve_with_pin`; what cannot move is not asked for."""
        registry = self._registry
        if registry is None or not requested.is_moving or not self.shares_pins(namespace):
            return resolve(requested, None)
        key = namespace, pin_name(requested)
        state = self._get_state(key)
        return resolve_with_pin(
            namespace,
            requested,
            lambda: self._find_pin(registry, key, state),
            resolve,
            lambda pin: self._add_user(registry, key, state, volume_id, pin),
        )

    def shares_pins(self, namespace: str) -> bool:
        """Whether the volumes of `namespace` share pins, so that the first one of a moving source decides for all."""
        return self._registry is not None and bool(namespace)

    def _get_state(self, key: _Key) -> _PinState:
        with self._lock:
            return self._pins.setdefault(key, _PinState())

    def _find_pin(self, registry: PinRegistry, key: _Key, state: _PinState) -> CachePin | None:
        with state.lock:
            if self._clock() - state.checked_at > _PIN_TTL:
                try:
                    self._update_state(state, registry.get(*key))
                except ClusterUnavailable:
                    if not state.is_held:
                        raise
            return state.pin

    def _update_state(self, state: _PinState, pin: CachePin | None) -> None:
        state.pin, state.is_held, state.checked_at = (
            pin,
            pin is not None and self._holder in pin.holders,
            self._clock(),
        )

    def _add_user(
        self, registry: PinRegistry, key: _Key, state: _PinState, volume_id: str, pin: CachePin
    ) -> CachePin:
        with state.lock:
            if not (state.is_held and state.pin):
                self._update_state(state, registry.add_holder(pin, self._holder))
            with self._lock:
                state.users[volume_id] = self._clock() + _RETRY_GRACE
                self._pins[key] = state  # it may have been tidied away since it was looked up
            return state.pin or pin

    def get_pin(self, volume_id: str) -> CachePin | None:
        """The pin that a volume was resolved under, None for none."""
        with self._lock:
            return next((state.pin for state in self._pins.values() if volume_id in state.users), None)

    def encode_pin(self, volume_id: str) -> dict[str, object] | None:
        """What the record of a volume keeps of its pin, None for none."""
        pin = self.get_pin(volume_id)
        if pin is None:
            return None
        return {
            "namespace": pin.namespace,
            "digest": pin.digest,
            "asked": pin.requested.to_context(),
            "pinned": pin.pinned.to_context(),
        }

    @contextmanager
    def keep_on_success(self, volume_id: str) -> Iterator[None]:
        """Whatever the block holds for the volume stays held when it ends well, and a while when it is to be tried again."""
        try:
            yield
        except RETRIED_ERRORS:
            raise
        except BaseException:
            self.release(volume_id)
            raise
        with self._lock:
            for state in self._pins.values():
                if volume_id in state.users:
                    state.users[volume_id] = float("inf")

    def release(self, volume_id: str) -> None:
        """The volume is no more: it holds nothing. The cluster hears of it soon."""
        with self._lock:
            for state in self._pins.values():
                if state.users.pop(volume_id, None) is not None and not state.users:
                    self._wake.set()

    def restore(self, volumes: Iterable[NodeVolume]) -> None:
        """Know the pins of volumes that an earlier start of the plugin has shown."""
        for volume in volumes:
            pin = _decode_pin(volume.pin) if volume.pin and self._registry else None
            if pin:
                state = self._get_state((pin.namespace, pin.name))
                with state.lock, self._lock:
                    state.pin, state.is_held = pin, True
                    state.users[volume.id] = float("inf")

    @contextmanager
    def sync_in_background(self) -> Iterator[None]:
        """For the block, have the cluster's pins say what this node holds, from a thread of its own."""
        if self._registry is None:
            yield
            return
        with background_thread(self._run, "pins", self._wake.set):
            yield

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._wake.clear()
            max_wait = _SYNC_INTERVAL
            try:
                self.sync()
            except DataCacheError as error:
                max_wait = _SYNC_RETRY_INTERVAL
                log.warning("pins not tended, it is tried again", extra={"fields": {"reason": error}})
            if not stop.is_set():
                self._wake.wait(random.uniform(0.8 * max_wait, max_wait))

    def sync(self) -> None:
        """Release what no volume wants, hold again what this node was swept from, and once what an earlier start left. Raises as PinRegistry."""
        if self._registry is None:
            return
        if not self._has_adopted_strays:
            self._adopt_strays(self._registry)
        for key, state in self._list_states():
            with state.lock:
                self._sync_pin(self._registry, key, state)

    def _adopt_strays(self, registry: PinRegistry) -> None:
        for pin in registry.list_all():
            if self._holder in pin.holders:
                state = self._get_state((pin.namespace, pin.name))
                with state.lock:
                    if not state.is_held:
                        state.pin, state.is_held = pin, True
        self._has_adopted_strays = True

    def _sync_pin(self, registry: PinRegistry, key: _Key, state: _PinState) -> None:
        now, previous = self._clock(), state.pin
        with self._lock:
            state.users = {volume_id: until for volume_id, until in state.users.items() if until > now}
            if not state.users and not state.is_held and now - state.checked_at > _RETRY_GRACE:
                self._pins.pop(key, None)
        # Whoever comes waits for the pin's guard, which is held here.
        if not state.users and state.is_held:
            registry.remove_holder(*key, self._holder)
            state.pin, state.is_held, state.checked_at = None, False, float("-inf")
        elif state.users and now - state.checked_at > _SYNC_INTERVAL / 2:
            self._update_state(state, registry.get(*key))
            # One that somebody deleted stays away, and what has taken its place is not what is shown here.
            if state.pin and state.pin == previous and not state.is_held:
                self._update_state(state, registry.add_holder(state.pin, self._holder))

    def _list_states(self) -> list[tuple[_Key, _PinState]]:
        with self._lock:
            return list(self._pins.items())


def _decode_pin(stored: Mapping[str, object]) -> CachePin | None:
    try:
        requested, pinned = (parse_accepted_parameters(stored[key]).spec for key in ("asked", "pinned"))  # type: ignore[arg-type]
        return CachePin(str(stored["namespace"]), requested, pinned, str(stored["digest"]))
    except (KeyError, TypeError, DataCacheError):
        return None
