"""Pins in memory, shared by everybody who has it: passes the suite of the real one (test_pin_registry.py)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from csi.errors import ClusterUnavailable
from csi.registry.pins.pins import CachePin, PinHolder


class FakePins:
    """See PinRegistry. `away` is a cluster that does not answer; `calls` are those that it was asked."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pins: dict[tuple[str, str], CachePin] = {}
        self.away = False
        self.calls: list[str] = []

    def _ask(self, call: str) -> None:
        self.calls.append(call)
        if self.away:
            raise ClusterUnavailable("the API server cannot be reached")

    def get(self, namespace: str, name: str) -> CachePin | None:
        self._ask("get")
        return self._pins.get((namespace, name))

    def add_holder(self, pin: CachePin, holder: PinHolder) -> CachePin:
        self._ask("hold")
        with self._guard:
            key = pin.namespace, pin.name
            kept = self._pins.get(key, replace(pin, holders={}))
            self._pins[key] = replace(kept, holders={holder: float(int(time.time())), **kept.holders})
            return self._pins[key]

    def remove_holder(self, namespace: str, name: str, holder: PinHolder) -> None:
        self._ask("release")
        with self._guard:
            kept = self._pins.pop((namespace, name), None)
            left = {other: since for other, since in kept.holders.items() if other != holder} if kept else {}
            if kept and left:
                self._pins[namespace, name] = replace(kept, holders=left)

    def list_all(self) -> Iterator[CachePin]:
        self._ask("all")
        yield from list(self._pins.values())

    def delete(self, namespace: str, name: str) -> None:
        """As kubectl delete does."""
        del self._pins[namespace, name]
