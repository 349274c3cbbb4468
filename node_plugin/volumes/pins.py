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

from csi.concurrency.background import beside
from csi.errors import Busy, ClusterUnavailable, DataCacheError, NoSpace, OriginUnavailable
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.pinning import pin_name
from csi.parameters.volume_parameters import parse_kept
from csi.registry.pins.pins import CachePin, Holder, PinRegistry
from csi.resolve.pinned import Resolve, under_pin
from csi.worker.protocol import Resolution
from node_plugin.volumes.records import NodeVolume

log = logging.getLogger("datacache.pins")

# Pods start in storms: those of one moment share an answer.
_FRESH_SECONDS = 2.0
# kubelet comes back within two and a half minutes; a volume that it does not come back for holds nothing.
_WAITING_SECONDS = 600.0
_TEND_SECONDS, _RETRY_SECONDS = 300.0, 30.0
# After these kubelet keeps the volume in doubt, and comes back or takes it away.
COMING_BACK = (Busy, NoSpace, OriginUnavailable, ClusterUnavailable)
_Key = tuple[str, str]


@dataclass
class _Held:
    """What is known of one pin: as of `checked` (seconds of the clock), whether this node holds it, and which volumes want that until when."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    pin: CachePin | None = None
    held: bool = False
    checked: float = float("-inf")
    users: dict[str, float] = field(default_factory=dict)


class NodePins:
    """Pins of the node `name` in `registry`; without one there are none. `clock` is monotonic seconds. Thread-safe."""

    def __init__(self, registry: PinRegistry | None = None, name: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._me, self._clock = registry, Holder("node", name), clock
        self._guard, self._wake = threading.Lock(), threading.Event()
        self._known: dict[_Key, _Held] = {}
        self._strays_looked_for = False

    def resolved(self, volume_id: str, namespace: str, asked: CacheSpec, resolve: Resolve) -> Resolution:
        """What `asked` means in `namespace`, held for the volume until `let_go`. See `under_pin`; what cannot move is not asked for."""
        registry = self._registry
        if registry is None or not asked.moving or not self.shared(namespace):
            return resolve(asked, None)
        key = namespace, pin_name(asked)
        held = self._held(key)
        return under_pin(
            namespace, asked, lambda: self._find(registry, key, held), resolve, lambda pin: self._hold(registry, key, held, volume_id, pin)
        )

    def shared(self, namespace: str) -> bool:
        """Whether the volumes of `namespace` share pins, so that the first one of a moving source decides for all."""
        return self._registry is not None and bool(namespace)

    def _held(self, key: _Key) -> _Held:
        with self._guard:
            return self._known.setdefault(key, _Held())

    def _find(self, registry: PinRegistry, key: _Key, held: _Held) -> CachePin | None:
        with held.guard:
            if self._clock() - held.checked > _FRESH_SECONDS:
                try:
                    self._learn(held, registry.get(*key))
                except ClusterUnavailable:
                    if not held.held:
                        raise
            return held.pin

    def _learn(self, held: _Held, pin: CachePin | None) -> None:
        held.pin, held.held, held.checked = pin, pin is not None and self._me in pin.holders, self._clock()

    def _hold(self, registry: PinRegistry, key: _Key, held: _Held, volume_id: str, pin: CachePin) -> CachePin:
        with held.guard:
            if not (held.held and held.pin):
                self._learn(held, registry.hold(pin, self._me))
            with self._guard:
                held.users[volume_id] = self._clock() + _WAITING_SECONDS
                self._known[key] = held  # it may have been tidied away since it was looked up
            return held.pin or pin

    def pin_of(self, volume_id: str) -> CachePin | None:
        """The pin that a volume was resolved under, None for none."""
        with self._guard:
            return next((held.pin for held in self._known.values() if volume_id in held.users), None)

    def of(self, volume_id: str) -> dict[str, object] | None:
        """What the record of a volume keeps of its pin, None for none."""
        pin = self.pin_of(volume_id)
        if pin is None:
            return None
        return {"namespace": pin.namespace, "digest": pin.digest, "asked": pin.asked.to_context(), "pinned": pin.pinned.to_context()}

    @contextmanager
    def using(self, volume_id: str) -> Iterator[None]:
        """Whatever the block holds for the volume stays held when it ends well, and a while when it is to be tried again."""
        try:
            yield
        except COMING_BACK:
            raise
        except BaseException:
            self.let_go(volume_id)
            raise
        with self._guard:
            for held in self._known.values():
                if volume_id in held.users:
                    held.users[volume_id] = float("inf")

    def let_go(self, volume_id: str) -> None:
        """The volume is no more: it holds nothing. The cluster hears of it soon."""
        with self._guard:
            for held in self._known.values():
                if held.users.pop(volume_id, None) is not None and not held.users:
                    self._wake.set()

    def adopt(self, volumes: Iterable[NodeVolume]) -> None:
        """Know the pins of volumes that an earlier start of the plugin has shown."""
        for volume in volumes:
            pin = _read(volume.pin) if volume.pin and self._registry else None
            if pin:
                held = self._held((pin.namespace, pin.name))
                with held.guard, self._guard:
                    held.pin, held.held = pin, True
                    held.users[volume.id] = float("inf")

    @contextmanager
    def tended(self) -> Iterator[None]:
        """For the block, have the cluster's pins say what this node holds, from a thread of its own."""
        if self._registry is None:
            yield
            return
        with beside(self._run, "pins", self._wake.set):
            yield

    def _run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            self._wake.clear()
            longest = _TEND_SECONDS
            try:
                self.tend()
            except DataCacheError as error:
                longest = _RETRY_SECONDS
                log.warning("pins not tended, it is tried again", extra={"fields": {"reason": error}})
            if not ended.is_set():
                self._wake.wait(random.uniform(0.8 * longest, longest))

    def tend(self) -> None:
        """Release what no volume wants, hold again what this node was swept from, and once what an earlier start left. Raises as PinRegistry."""
        if self._registry is None:
            return
        if not self._strays_looked_for:
            self._look_for_strays(self._registry)
        for key, held in self._all():
            with held.guard:
                self._tend_one(self._registry, key, held)

    def _look_for_strays(self, registry: PinRegistry) -> None:
        for pin in registry.all():
            if self._me in pin.holders:
                held = self._held((pin.namespace, pin.name))
                with held.guard:
                    if not held.held:
                        held.pin, held.held = pin, True
        self._strays_looked_for = True

    def _tend_one(self, registry: PinRegistry, key: _Key, held: _Held) -> None:
        now, old = self._clock(), held.pin
        with self._guard:
            held.users = {volume_id: until for volume_id, until in held.users.items() if until > now}
            if not held.users and not held.held and now - held.checked > _WAITING_SECONDS:
                self._known.pop(key, None)
        # Whoever comes waits for the pin's guard, which is held here.
        if not held.users and held.held:
            registry.release(*key, self._me)
            held.pin, held.held, held.checked = None, False, float("-inf")
        elif held.users and now - held.checked > _TEND_SECONDS / 2:
            self._learn(held, registry.get(*key))
            # One that somebody deleted stays away, and what has taken its place is not what is shown here.
            if held.pin and held.pin == old and not held.held:
                self._learn(held, registry.hold(held.pin, self._me))

    def _all(self) -> list[tuple[_Key, _Held]]:
        with self._guard:
            return list(self._known.items())


def _read(kept: Mapping[str, object]) -> CachePin | None:
    try:
        asked, pinned = (parse_kept(kept[key]).spec for key in ("asked", "pinned"))  # type: ignore[arg-type]
        return CachePin(str(kept["namespace"]), asked, pinned, str(kept["digest"]))
    except (KeyError, TypeError, DataCacheError):
        return None
