"""Images for volumes of other places than gave their bytes: compared with the volume's own origin first, once for each place."""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Patience
from csi.concurrency.wait_limiter import WaitingRoom
from csi.errors import Busy
from csi.images.node_store.records import ImagePaths
from csi.images.node_store.store import Store
from csi.worker.pool import Call, WorkerPool
from csi.worker.protocol import Request

log = logging.getLogger("datacache.vouch")

_ERROR_KEPT_SECONDS = 60.0
_Name = tuple[str, str, frozenset[tuple[str, str]]]


@dataclass
class _Comparison:
    call: Call = field(default_factory=Call)
    waiters: set[Patience] = field(default_factory=set)
    error: Exception | None = None
    ended: float = 0.0

    @property
    def stale(self) -> bool:
        """An error nobody came to hear is told to the next caller, but not to one that comes much later."""
        return self.ended > 0 and time.monotonic() - self.ended > _ERROR_KEPT_SECONDS


class Vouching:
    """The comparisons of one node. Thread-safe."""

    def __init__(self, store: Store, pool: WorkerPool, room: WaitingRoom, connections: int) -> None:
        self._store, self._pool, self._room, self._connections = store, pool, room, connections
        self._guard = threading.Lock()
        self._under_way: dict[_Name, _Comparison] = {}

    def wait(self, key: str, digest: str, secrets: Mapping[str, str], patience: Patience, access: Mapping[str, str]) -> None:
        """Return when the place that `access` reads from is known to hold the bytes of the sealed image, which the caller holds.

        `key` is the volume whose call waits. Raises Busy when `patience` ends first (the work goes on), CorruptContent when the
        bytes differ, and what kept `secrets` from reading them; the image stays as it is.
        """
        place = self._store.place(access, secrets)
        name = (digest, place, frozenset(secrets.items()))
        while place not in self._store.places(digest):
            with self._room.seat(key, patience):
                comparison = self._join(name, access, secrets, patience)
                while not comparison.ended and not patience.over:
                    patience.sleep()
                self._leave(name, comparison, patience)
            if not comparison.ended or patience.cancelled:
                raise Busy(patience.cancelled or "comparing the cached files with what this volume's origin sends; call again, the work goes on")
            if comparison.error:
                raise comparison.error

    def stop(self) -> None:
        """Stop all comparisons."""
        with self._guard:
            calls = [comparison.call for comparison in self._under_way.values()]
        for call in calls:
            call.stop()

    def _join(self, name: _Name, access: Mapping[str, str], secrets: Mapping[str, str], patience: Patience) -> _Comparison:
        with self._guard:
            self._under_way = {other: kept for other, kept in self._under_way.items() if not kept.stale}
            comparison = self._under_way.get(name)
            if comparison is None:
                comparison = self._under_way[name] = _Comparison()
                threading.Thread(target=self._run, args=(name, comparison, dict(access), dict(secrets)), name="vouch", daemon=True).start()
            comparison.waiters.add(patience)
            return comparison

    def _leave(self, name: _Name, comparison: _Comparison, patience: Patience) -> None:
        with self._guard:
            comparison.waiters.discard(patience)
            if comparison.ended and self._under_way.get(name) is comparison:
                del self._under_way[name]

    def _run(self, name: _Name, comparison: _Comparison, access: dict[str, str], secrets: dict[str, str]) -> None:
        digest, place, _ = name
        try:
            with self._store.hold(digest) as record:
                self._pool.call("vouch", self._request(name, record.paths, access, secrets), comparison.call)
                self._store.note_vouched(digest, place)
            log.info("image vouched for", extra={"fields": {"image": digest, "place": place[:12]}})
        except Exception as error:
            comparison.error = error
            log.warning("image not vouched for", extra={"fields": {"image": digest, "place": place[:12], "reason": type(error).__name__}})
        with self._guard:
            comparison.ended = time.monotonic()
            for patience in comparison.waiters:
                patience.wake()
            if not comparison.error and not comparison.waiters:
                self._under_way.pop(name, None)

    def _request(self, name: _Name, paths: ImagePaths, access: dict[str, str], secrets: dict[str, str]) -> Request:
        manifest, image, seed = str(paths.manifest), str(paths.image), self._seed(name)
        return Request("vouch", access, secrets, manifest=manifest, image=image, connections=self._connections, seed=seed)

    def _seed(self, name: _Name) -> str:
        """The same for the same question: who may try again is not to try elsewhere."""
        return hmac.new(self._store.key(), f"vouch {name[0]} {name[1]}".encode(), hashlib.sha256).hexdigest()
