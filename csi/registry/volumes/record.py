"""Volume records, and the Protocol of a registry of them."""

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
    """Volume created by the controller.

    `requested_spec` is the spec as requested, `spec` the pinned one; `digest` names the manifest (64 hex
    digits); `capacity_bytes` is the promised size, `content_bytes` the actual one; `cloned_from` is the id of
    the volume it was cloned from, "" for none; `created_at` is in seconds since 1970; `pvc` is the PVC it was
    created for, if known; `pin_namespace` is that of the CachePin it holds, "" for none.
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
        """Return the volume context for nodes: flat parameters without secrets.

        Includes the PVC, so that nodes can record Events without an API call.
        """
        pvc_context = self.pvc.to_context(self.name) if self.pvc else {}
        return (
            VolumeParameters(
                self.spec, self.performance, self.downgrade_writers, self.digest, self.capacity_bytes
            ).to_context()
            | pvc_context
        )

    def encode(self) -> dict[str, object]:
        """Return the record as JSON values."""
        record: dict[str, object] = {
            "format": VOLUME_FORMAT,
            "id": self.id,
            "name": self.name,
            "content_bytes": self.content_bytes,
            "cloned_from": self.cloned_from,
            "created": self.created_at,
            "asked": self.requested_spec.to_context(),
            "context": self.to_context(),
        }
        return record | ({"namespace": self.pin_namespace} if self.pin_namespace else {})

    @staticmethod
    def decode(stored: dict[str, Any]) -> VolumeRecord:
        """Decode a record that `encode` wrote.

        Raises ValueError for another format, KeyError or TypeError for a damaged record.
        """
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
    """Return the id of the volume that CreateVolume makes for a name, which is that of its PV."""
    return "dc-" + hashlib.sha256(name.encode()).hexdigest()[:40]


class WatchedVolumes:
    """Set of volume ids that a watcher wants reported, which may change while it watches. Thread-safe."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._ids = frozenset(ids)
        self._listeners: list[Callable[[], None]] = []

    def __contains__(self, volume_id: str) -> bool:
        return volume_id in self._ids

    def ids(self) -> frozenset[str]:
        """Return all ids."""
        return self._ids

    def add(self, volume_id: str) -> None:
        """Add an id. It is reported at once, since earlier changes of it were not."""
        self._update(lambda ids: ids | {volume_id})

    def discard(self, volume_id: str) -> None:
        """Remove an id; a missing one is no error."""
        self._update(lambda ids: ids - {volume_id})

    def _update(self, change: Callable[[frozenset[str]], frozenset[str]]) -> None:
        with self._lock:
            old, self._ids = self._ids, change(self._ids)
            listeners = list(self._listeners) if self._ids != old else []
        for listener in listeners:
            listener()

    @contextmanager
    def notify_on_change(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` after each change during the block."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)


class VolumeRegistry(Protocol):
    """Registry of volume records. Every change is durable when the method returns. Thread-safe."""

    def get(self, volume_id: str) -> VolumeRecord | None:
        """Return the record of a volume, or None.

        Any string is allowed as id. Raises DataCacheError if the record is damaged.
        """

    def add(self, record: VolumeRecord) -> VolumeRecord:
        """Add a record unless there is one with its id; return the stored one.

        Of concurrent calls, in all processes, exactly one adds.
        """

    def put(self, record: VolumeRecord) -> None:
        """Add a record, or replace the one with the same id."""

    def change(self, volume_id: str, update: Callable[[VolumeRecord], VolumeRecord]) -> VolumeRecord | None:
        """Replace a record by `update(record)` and return the new one; None if there is no record.

        No concurrent change is lost.

        `update` changes only the performance. It may be called again after concurrent changes; what it raises
        is passed on. Raises ClusterConflict if others change the volume again and again.
        """

    def delete(self, volume_id: str) -> None:
        """Delete a record; a missing one is no error."""

    def list_page(self, after: str, limit: int) -> list[VolumeRecord]:
        """Return at most `limit` records after the id `after`, which need not exist; `limit` 0 for all.

        Records deleted meanwhile are left out.

        The order of ids never changes: ids that are DNS subdomains in their own order, others where the
        registry files them.
        """

    def watch(
        self, on_change: Callable[[str], None], only: WatchedVolumes | None = None
    ) -> AbstractContextManager[None]:
        """Call `on_change(volume_id)` from a thread during the block, soon after a record was put or deleted.

        Changes by all processes count. With `only`, it is called for those ids, and for each id added to
        them. It may be called more often than records change, and once for several changes; never after the
        block. What `on_change` raises is logged. Records put before the block are not reported. Raises
        DataCacheError if a folder registry's folder is gone.
        """
