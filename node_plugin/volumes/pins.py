"""The pins that this node holds for its inline volumes, one hold per source and namespace.

A pin is cached for a moment, and a held one for as long as the API server is unreachable: the hold keeps the
pin from being collected, so the cached value is still what all other nodes get. A pin that is not held needs
the API server.
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
from csi.worker.results import Resolution
from node_plugin.volumes.records import NodeVolume

log = logging.getLogger("datacache.pins")

# Seconds that a pin is cached: many pods start at once, and share one request.
_PIN_TTL = 2.0
# Seconds; kubelet retries within two and a half minutes. A volume that is not retried by then holds no pin.
_RETRY_GRACE = 600.0
_SYNC_INTERVAL, _SYNC_RETRY_INTERVAL = 300.0, 30.0
# After these errors kubelet treats the mount as uncertain: it retries, or unpublishes the volume.
RETRIED_ERRORS = (Busy, NoSpace, OriginUnavailable, ClusterUnavailable)
_Key = tuple[str, str]


@dataclass
class _PinState:
    """State of one pin as of `checked_at` (seconds of the clock).

    `is_held` is whether this node is among the holders; `users` maps volume ids to when their use expires.
    Locks are taken in this order: `lock`, then that of `NodePins`.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    pin: CachePin | None = None
    is_held: bool = False
    checked_at: float = float("-inf")
    users: dict[str, float] = field(default_factory=dict)


class NodePins:
    """The pins that the node `name` holds in `registry`, if any. Thread-safe.

    `clock` returns monotonic seconds.
    """

    def __init__(
        self, registry: PinRegistry | None = None, name: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._clock = registry, clock
        self._holder = PinHolder("node", name)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._pins: dict[_Key, _PinState] = {}
        self._has_adopted_strays = False

    def needs_pin(self, namespace: str, requested: CacheSpec) -> bool:
        """Return whether the first volume of the source in `namespace` pins it for the others."""
        return self._registry is not None and bool(namespace) and requested.is_moving

    def find_pin(self, namespace: str, requested: CacheSpec) -> CachePin | None:
        """Return the namespace's pin of a source that needs one, None if there is none yet.

        Raises as PinRegistry, but for a pin that this node holds.
        """
        key = namespace, pin_name(requested)
        return self._find_pin(self._require_registry(), key, self._get_state(key))

    def hold_pin(self, volume_id: str, namespace: str, requested: CacheSpec, resolution: Resolution) -> bool:
        """Pin the source to `resolution`, and hold the pin in force for the volume until `release`.

        Returns False if that is another one, which was created meanwhile. Raises as PinRegistry.
        """
        key = namespace, pin_name(requested)
        pin = CachePin.from_specs(namespace, requested, resolution.spec, resolution.digest)
        held_pin = self._add_user(self._require_registry(), key, self._get_state(key), volume_id, pin)
        return held_pin.digest == resolution.digest

    def _require_registry(self) -> PinRegistry:
        assert self._registry is not None
        return self._registry

    def _get_state(self, key: _Key) -> _PinState:
        with self._lock:
            return self._pins.setdefault(key, _PinState())

    def _find_pin(self, registry: PinRegistry, key: _Key, state: _PinState) -> CachePin | None:
        with state.lock:
            if self._clock() - state.checked_at > _PIN_TTL:
                try:
                    self._update_state(state, registry.get(*key))
                # A pin that this node holds cannot have been collected meanwhile.
                except ClusterUnavailable:
                    if not state.is_held:
                        raise
            return state.pin

    def _update_state(self, state: _PinState, pin: CachePin | None) -> None:
        state.pin = pin
        state.is_held = pin is not None and self._holder in pin.holders
        state.checked_at = self._clock()

    def _add_user(
        self, registry: PinRegistry, key: _Key, state: _PinState, volume_id: str, pin: CachePin
    ) -> CachePin:
        with state.lock:
            if not (state.is_held and state.pin):
                self._update_state(state, registry.add_holder(pin, self._holder))
            with self._lock:
                state.users[volume_id] = self._clock() + _RETRY_GRACE
                # `_sync_pin` may have dropped the state since it was looked up.
                self._pins[key] = state
            return state.pin or pin

    def get_pin(self, volume_id: str) -> CachePin | None:
        """Return the pin that a volume was resolved under, None for none."""
        with self._lock:
            return next((state.pin for state in self._pins.values() if volume_id in state.users), None)

    def encode_pin(self, volume_id: str) -> dict[str, object] | None:
        """Return the pin of a volume as JSON values for its record, None for none."""
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
        """Keep the pins that the block holds for the volume until `release`, if the block succeeds.

        If it fails with an error that kubelet retries, they are kept for a grace period, else released.
        """
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
        """Release the pins of a volume; `sync` removes the node's hold soon after."""
        with self._lock:
            for state in self._pins.values():
                if state.users.pop(volume_id, None) is not None and not state.users:
                    self._wake.set()

    def restore(self, volumes: Iterable[NodeVolume]) -> None:
        """Restore the pins of volumes that an earlier process of the plugin has published."""
        for volume in volumes:
            pin = _decode_pin(volume.pin) if volume.pin and self._registry else None
            if pin:
                state = self._get_state((pin.namespace, pin.name))
                with state.lock, self._lock:
                    state.pin, state.is_held = pin, True
                    # Until `release`: the volume is published.
                    state.users[volume.id] = float("inf")

    @contextmanager
    def sync_in_background(self) -> Iterator[None]:
        """Call `sync` periodically and after changes for the block, in a thread of its own."""
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
                log.warning("pins not synced, retrying later", extra={"fields": {"reason": error}})
            if not stop.is_set():
                # Random, so that the nodes of a cluster do not call the API server at the same moment.
                self._wake.wait(random.uniform(0.8 * max_wait, max_wait))

    def sync(self) -> None:
        """Make the holders in the registry match the volumes of this node.

        Unused pins are released; lost holds are added again. The first call also finds pins that an earlier
        process of the plugin held. Raises as PinRegistry.
        """
        if self._registry is None:
            return
        if not self._has_adopted_strays:
            self._adopt_strays(self._registry)
        for key, state in self._list_states():
            with state.lock:
                self._sync_pin(self._registry, key, state)

    def _adopt_strays(self, registry: PinRegistry) -> None:
        # Pins without a user here are released by `_sync_pin`.
        for pin in registry.list_all():
            if self._holder in pin.holders:
                state = self._get_state((pin.namespace, pin.name))
                with state.lock:
                    if not state.is_held:
                        state.pin, state.is_held = pin, True
        self._has_adopted_strays = True

    def _sync_pin(self, registry: PinRegistry, key: _Key, state: _PinState) -> None:
        now = self._clock()
        previous = state.pin
        with self._lock:
            state.users = {volume_id: until for volume_id, until in state.users.items() if until > now}
            if not state.users and not state.is_held and now - state.checked_at > _RETRY_GRACE:
                self._pins.pop(key, None)
        # A new user waits for the state's lock, which is held here.
        if not state.users and state.is_held:
            registry.remove_holder(*key, self._holder)
            state.pin = None
            state.is_held = False
            state.checked_at = float("-inf")
        elif state.users and now - state.checked_at > _SYNC_INTERVAL / 2:
            self._update_state(state, registry.get(*key))
            # A pin that was deleted is not restored, and one that replaced it has other content than is
            # mounted here.
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
