"""What the cluster knows of a volume, and the Protocol of whoever keeps it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.performance_keys import Performance
from csi.parameters.pvc import PvcReference
from csi.parameters.volume_parameters import VolumeParameters, parse_accepted_parameters

VOLUME_FORMAT = 1


@dataclass(frozen=True)
class VolumeRecord:
    """One volume of the controller.

    `requested_spec` is the spec as it was asked for, `spec` the pinned one; `digest` names the manifest (64 hex digits);
    `capacity_bytes` is what the volume promises, `content_bytes` what it holds; `cloned_from` the id of the volume it
    was cloned from, "" for none; `created_at` seconds since 1970; `pvc` is the PVC it was made for, where that is known; `pin_namespace` is that
    of the CachePin it holds, "" for none.
    """

    id: str
    name: str
    requested_spec: CacheSpec
    spec: CacheSpec
    digest: str
    capacity_bytes: int
    content_bytes: int
    downgrade_writers: bool = False
    cloned_from: str = ""
    created_at: float = 0.0
    performance: Performance = field(default_factory=Performance)
    pvc: PvcReference | None = None
    pin_namespace: str = ""

    def to_context(self) -> dict[str, str]:
        """The volume context that nodes get: flat parameters, no secret, and the PVC, so that no node has to ask whom a fill is told to."""
        claim = self.pvc.to_context(self.name) if self.pvc else {}
        return (
            VolumeParameters(
                self.spec, self.performance, self.downgrade_writers, self.digest, self.capacity_bytes
            ).to_context()
            | claim
        )

    def encode(self) -> dict[str, object]:
        """Return the record as JSON values."""
        kept: dict[str, object] = {
            "format": VOLUME_FORMAT,
            "id": self.id,
            "name": self.name,
            "content_bytes": self.content_bytes,
            "cloned_from": self.cloned_from,
            "created": self.created_at,
            "asked": self.requested_spec.to_context(),
            "context": self.to_context(),
        }
        return kept | ({"namespace": self.pin_namespace} if self.pin_namespace else {})

    @staticmethod
    def decode(stored: dict[str, Any]) -> VolumeRecord:
        """Return the record that `encode` wrote; raise ValueError for another format, KeyError or TypeError for a damaged one."""
        if stored["format"] != VOLUME_FORMAT:
            raise ValueError(f"format {stored['format']}, this driver reads {VOLUME_FORMAT}")
        context = parse_accepted_parameters(stored["context"])
        if context.manifest_digest is None or context.capacity_bytes is None:
            raise ValueError("the digest or the capacity is missing")
        return VolumeRecord(
            id=stored["id"],
            name=stored["name"],
            requested_spec=parse_accepted_parameters(stored["asked"]).spec,
            spec=context.spec,
            digest=context.manifest_digest,
            capacity_bytes=context.capacity_bytes,
            content_bytes=stored["content_bytes"],
            downgrade_writers=context.downgrade_writers,
            cloned_from=stored["cloned_from"],
            created_at=stored["created"],
            performance=context.performance,
            pvc=PvcReference.from_context(stored["context"]),
            pin_namespace=str(stored.get("namespace", "")),
        )


def volume_id_from_name(name: str) -> str:
    """The id of the volume that CreateVolume made for a name, which is that of its PV."""
    return "dc-" + hashlib.sha256(name.encode()).hexdigest()[:40]


class WatchedVolumes:
    """The ids that a watcher wants to be told of, which may change while it watches. Thread-safe."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._ids = frozenset(ids)
        self._listeners: list[Callable[[], None]] = []

    def __contains__(self, volume_id: str) -> bool:
        return volume_id in self._ids

    def ids(self) -> frozenset[str]:
        """All of them."""
        return self._ids

    def add(self, volume_id: str) -> None:
        """Want to be told of one more, which is told at once, since what changed before was not."""
        self._update(lambda ids: ids | {volume_id})

    def discard(self, volume_id: str) -> None:
        """Want to be told of one less; one that is not wanted is no error."""
        self._update(lambda ids: ids - {volume_id})

    def _update(self, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        with self._lock:
            old, self._ids = self._ids, change(self._ids)
            listeners = list(self._listeners) if self._ids != old else []
        for listener in listeners:
            listener()

    @contextmanager
    def notify_on_change(self, listener: Callable[[], None]) -> Iterator[None]:
        """For the block, call `listener` after each change."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)


class VolumeRegistry(Protocol):
    """Keeps volume records. Every change is durable when the method returns. Thread-safe."""

    def get(self, volume_id: str) -> VolumeRecord | None:
        """The record of `volume_id`, None where there is none; ids of any form may be asked for."""

    def add(self, record: VolumeRecord) -> VolumeRecord:
        """Add the record where there is none of its id; the record that is kept then. Of all who add at once, in all processes, one does."""

    def put(self, record: VolumeRecord) -> None:
        """Add the record, or replace the one of the same id."""

    def change(self, volume_id: str, update: Callable[[VolumeRecord], VolumeRecord]) -> VolumeRecord | None:
        """Replace a record by `update(record)` and return that; None, and nothing added, where there is none. No change of another's is lost.

        `update` changes the performance alone. It may be called again, for a record that somebody else changed meanwhile; what it raises is raised.
        """

    def delete(self, volume_id: str) -> None:
        """Remove the record; one that is not there is no error."""

    def list_page(self, after: str, limit: int) -> list[VolumeRecord]:
        """At most `limit` records that stand behind `after`, which need not be there; `limit` 0 for all.

        Every id has its place for ever: ids that are DNS subdomains in their order, others where the registry files them.
        """

    def watch(
        self, on_change: Callable[[str], None], only: WatchedVolumes | None = None
    ) -> AbstractContextManager[None]:
        """Within the block, call `on_change(volume_id)` from a thread of its own soon after a record was put or deleted, by whichever process.

        With `only`, for those ids alone, and for each that is added to them. It may be called more often than that, and for several
        changes of a record at once; when the block has ended it is not called any more. What `on_change` raises is logged. What was put
        before the block is for the caller to read.
        """
