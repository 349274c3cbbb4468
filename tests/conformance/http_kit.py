"""What kits have in common whose origin is a server of `tests.origins` that counts, and fails as it is
told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from csi.parameters.cache_spec import CacheSpec
from tests.origins.faults import Counters, Fault, Faults


class Origin(Protocol):
    """A server in this process."""

    faults: Faults
    counters: Counters

    def start(self) -> None: ...

    def stop(self) -> None: ...


class HttpKit(ABC):
    """The half of `FaultyKit` that `origin` answers; whoever makes the kit sets that when it is entered."""

    origin: Origin
    top_files = True

    @abstractmethod
    def key(self, spec: CacheSpec, path: str) -> str:
        """What faults and counters call a file."""

    def missing(self) -> str:
        return ""

    def corrupt(self, spec: CacheSpec, path: str) -> None:
        self.origin.faults.add(Fault("corrupt", self.key(spec, path), after=1))

    def cut(self, spec: CacheSpec, path: str, after: int) -> bool:
        self.origin.faults.add(Fault("drop", self.key(spec, path), times=1, after=after))
        return True

    def stop(self) -> None:
        self.origin.stop()

    def start(self) -> None:
        self.origin.start()

    def bytes_sent(self, spec: CacheSpec, path: str) -> int | None:
        return self.origin.counters.bytes_sent[self.key(spec, path)]

    def open_connections(self) -> int:
        return sum(self.origin.counters.connections.values())

    @property
    def faults(self) -> Faults:
        return self.origin.faults

    @property
    def counters(self) -> Counters:
        return self.origin.counters
