"""Fills in the background: one for each image, begun by the first volume that wants it, waited for by all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from csi.concurrency.deadline import Patience
from csi.concurrency.wait_limiter import WaitingRoom
from csi.errors import Busy, CorruptContent, DataCacheError, NoSpace, SourceChanged, UnsafeContent
from csi.image_store.client import Sought, StoredImages
from csi.images.node_store.provenance import IMAGE_STORE
from csi.images.node_store.reuse_candidates import reserve
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress, write_progress
from csi.parameters.origin_scope import is_of_place
from csi.registry.events.recorder import Subject
from csi.worker.pool import Call, WorkerPool
from csi.worker.protocol import Request
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.verification import Vouching

log = logging.getLogger("datacache.fill")

# After these the bytes so far are of no use to a next try.
HOPELESS = (CorruptContent, SourceChanged, UnsafeContent)
_REPORT_SECONDS = 0.5
_OTHERS_FIRST = "fills that pods wait for go first"


@dataclass
class _Fill:
    digest: str
    access: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    place: str
    is_ahead: bool = False
    donors: list[Path] = field(default_factory=list)
    room: ExitStack = field(default_factory=ExitStack)
    call: Call = field(default_factory=Call)
    progress: FillProgress = field(default_factory=FillProgress)
    waiters: set[Patience] = field(default_factory=set)
    ahead: set[Patience] = field(default_factory=set)
    """Who has it filled ahead of any pod: a fill of nobody else gives way to others."""
    wanted: float = field(default_factory=time.monotonic)
    error: Exception | None = None
    done: bool = False
    reported: float = 0.0


class Fills:
    """The fills of one node. A fill that nobody has waited for during `grace` seconds is stopped; its bytes stay. Thread-safe."""

    def __init__(
        self,
        store: Store,
        pool: WorkerPool,
        room: WaitingRoom,
        *,
        connections: int,
        grace: float,
        in_use: Callable[[], set[str]],
        events: FillEvents | None = None,
        stored: StoredImages | None = None,
    ) -> None:
        self._store, self._pool, self._room, self._stored = store, pool, room, stored
        self._connections, self._grace, self._in_use = connections, grace, in_use
        self._events = events or FillEvents()
        self._vouching = Vouching(store, pool, room, connections)
        self._guard = threading.Lock()
        self._fills: dict[str, _Fill] = {}
        self._kept: Callable[[], set[str]] = set

    def wait(
        self,
        key: str,
        digest: str,
        secrets: Mapping[str, str],
        patience: Patience,
        access: Mapping[str, str] | None = None,
        subject: Subject | None = None,
        known: bool = False,
    ) -> None:
        """Return when the image is sealed, beginning its fill where none runs, and known to be what this volume's place holds.

        Its manifest must be in the store. `key` is the volume whose call waits, `access` its pinned spec: another repository may
        hold the same image, but what opens the one need not open the other. Without it the manifest in the store says where to
        read. `known` says that the place is known to hold the image's bytes. `subject` is told of the fill. Raises Busy with the progress
        when `patience` ends first, NoSpace at once when the image cannot fit, what ended the fill, and what `Vouching.wait` raises where
        the bytes came from another place.
        """
        while not self._store.sealed(digest):
            with self._room.seat(key, patience):
                fill = self._join(digest, access or {}, secrets, patience, (key, subject))
                while not fill.done and not patience.over:
                    patience.sleep()
                self._leave(fill, patience)
            if not fill.done or patience.cancelled:
                raise Busy(patience.cancelled or f"filling the cache: {fill.progress.shown()}; call again, the fill goes on")
            # What ended a fill that another volume began, elsewhere or with another credential, says nothing about this one's.
            if fill.error and (fill.access, fill.secrets) == (access or {}, secrets):
                raise fill.error
        access = access or self._store.access(digest)
        if known:
            self.vouched(digest, access, secrets)
        self._vouching.wait(key, digest, secrets, patience, access)

    def vouched(self, digest: str, access: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        """Let the sealed image count for a place that is known to hold its bytes; raises NotFound where the image is gone."""
        place = self._store.place(access, secrets)
        if place not in self._store.places(digest):
            self._store.note_vouched(digest, place)

    def compared(self, key: str, digest: str, secrets: Mapping[str, str], patience: Patience, access: Mapping[str, str]) -> None:
        """Return when the sealed image is known to be what `access` reads; raises as `Vouching.wait`."""
        self._vouching.wait(key, digest, secrets, patience, access)

    def ahead(self, digest: str, secrets: Mapping[str, str], access: Mapping[str, str], patience: Patience) -> None:
        """As `wait`, for an image that no pod has asked for yet: it goes last, and gives way to every fill that a pod waits for.

        It takes no seat and asks no origin about a sealed image. Raises Busy with the progress, or when others go first, NoSpace, and
        what ended the fill.
        """
        if self._store.sealed(digest):
            return
        if self.hurried(digest):
            raise Busy(_OTHERS_FIRST)
        fill = self._join(digest, access, secrets, None, ahead=patience)
        while not fill.done and not patience.over:
            patience.sleep()
        with self._guard:
            fill.ahead.discard(patience)
            fill.wanted = time.monotonic()
        if not fill.done or patience.cancelled:
            raise Busy(patience.cancelled or fill.progress.shown())
        if fill.error and not isinstance(fill.error, Busy) and (fill.access, fill.secrets) == (access, secrets):
            raise fill.error
        if fill.error:
            raise Busy(_OTHERS_FIRST)

    def keep(self, kept: Callable[[], set[str]]) -> None:
        """No fill evicts what `kept` names, either."""
        self._kept = kept

    def hurried(self, digest: str = "") -> bool:
        """Whether a pod waits for a fill, of another image than `digest`."""
        with self._guard:
            return any(fill.waiters for fill in self._fills.values() if fill.digest != digest)

    def give_way(self, digest: str = "") -> bool:
        """Stop the fills, or that of `digest`, that go ahead of any pod and that none waits for; whether there were any. Their bytes stay."""
        with self._guard:
            return self._give_way(digest)

    def _give_way(self, digest: str = "") -> bool:
        stopped = [fill for fill in self._fills.values() if fill.is_ahead and not fill.waiters and digest in ("", fill.digest)]
        for fill in stopped:
            fill.call.stop()
        return bool(stopped)

    def begin(self, digest: str, secrets: Mapping[str, str]) -> None:
        """Begin or go on with a fill without waiting for it; no image goes for one that nobody may want. Raises NoSpace."""
        self._join(digest, {}, secrets, None)

    def progress(self) -> dict[str, FillProgress]:
        """How far each fill under way is, by digest."""
        with self._guard:
            return {digest: fill.progress for digest, fill in self._fills.items()}

    def stop(self) -> None:
        """Stop all fills, whose bytes stay, and comparisons."""
        self._vouching.stop()
        with self._guard:
            fills = list(self._fills.values())
        for fill in fills:
            fill.call.stop()

    def _join(
        self,
        digest: str,
        access: Mapping[str, str],
        secrets: Mapping[str, str],
        patience: Patience | None,
        listener: tuple[str, Subject | None] = ("", None),
        ahead: Patience | None = None,
    ) -> _Fill:
        with self._guard:
            fill = self._fills.get(digest)
            if fill is None:
                fill = self._begun(digest, access, secrets, patience, ahead)
            if ahead:
                fill.ahead.add(ahead)
            if patience:
                fill.waiters.add(patience)
                self._events.joined(listener[0], digest, listener[1])
            return fill

    def _begun(self, digest: str, access: Mapping[str, str], secrets: Mapping[str, str], patience: Patience | None, ahead: Patience | None) -> _Fill:
        place = self._store.place(access or self._store.access(digest), secrets)
        fill = _Fill(digest, dict(access), dict(secrets), place, is_ahead=ahead is not None)
        gives_way = patience is not None and self._give_way()
        try:
            fill.donors = fill.room.enter_context(reserve(self._store, digest, fill.place, self._staying if patience or ahead else self._all))
        except NoSpace:
            if gives_way:
                raise Busy("a fill that goes ahead of its pods makes room; call again") from None
            raise
        self._fills[digest] = fill
        threading.Thread(target=self._run, args=(fill,), name="fill", daemon=True).start()
        return fill

    def _staying(self) -> set[str]:
        return self._in_use() | self._kept()

    def _all(self) -> set[str]:
        return {image.digest for image in self._store.images()}

    def _leave(self, fill: _Fill, patience: Patience) -> None:
        with self._guard:
            fill.waiters.discard(patience)
            fill.wanted = time.monotonic()

    def _run(self, fill: _Fill) -> None:
        started = time.monotonic()
        try:
            paths = self._store.paths(fill.digest)
            place, sought = self._sought(fill)
            request = Request(
                "fill",
                fill.access,
                fill.secrets,
                manifest=str(paths.manifest),
                partial=str(paths.partial),
                journal=str(paths.journal),
                image=str(paths.image),
                connections=self._connections,
                donors=tuple(map(str, fill.donors)),
            )
            self._store.note_fill(fill.digest, place)
            self._pool.call("fill", sought.carried_by(request), fill.call, lambda progress: self._heard(fill, progress))
            fields = {
                "image": fill.digest,
                "bytes": fill.progress.bytes_total,
                "copied": fill.progress.bytes_copied,
                "s": round(time.monotonic() - started, 2),
            }
            log.info("image sealed", extra={"fields": fields})
        except Exception as error:
            self._failed(fill, error)
        self._end(fill)

    def _sought(self, fill: _Fill) -> tuple[str, Sought]:
        """Find the place that the bytes will come from, and what the image store has of them."""
        sought = self._stored.seek(fill.digest) if self._stored else Sought()
        access = fill.access or self._store.access(fill.digest)
        of_one_place = sought.found is None or is_of_place(sought.found.access, access)
        # Another's bytes, which this place would have to send too before its volumes have them.
        return fill.place if of_one_place else IMAGE_STORE, sought

    def _heard(self, fill: _Fill, progress: FillProgress) -> None:
        fill.progress = progress
        self._events.progressed(fill.digest, progress)
        self._report(fill)
        with self._guard:
            unwanted = not fill.waiters and not fill.ahead and time.monotonic() - fill.wanted > self._grace
        if unwanted:
            fill.call.stop()

    def _report(self, fill: _Fill) -> None:
        """Put the progress where `datacache images` reads it, now and then."""
        now = time.monotonic()
        if now - fill.reported < _REPORT_SECONDS:
            return
        fill.reported = now
        with suppress(OSError):
            write_progress(self._store.paths(fill.digest).progress, fill.progress)

    def _failed(self, fill: _Fill, error: Exception) -> None:
        fill.error = error
        text = str(error) if isinstance(error, DataCacheError) else type(error).__name__
        log.warning("fill ended", extra={"fields": {"image": fill.digest, "progress": fill.progress.shown(), "reason": text}})

    def _end(self, fill: _Fill) -> None:
        # A disk that fails here must not leave a fill that never ends.
        with suppress(OSError):
            self._store.paths(fill.digest).progress.unlink(missing_ok=True)
        with self._guard:
            fill.done = True
            del self._fills[fill.digest]
            fill.room.close()
            self._events.ended(fill.digest, fill.error)
            for patience in fill.waiters | fill.ahead:
                patience.wake()
        if isinstance(fill.error, HOPELESS):
            self.discard(fill.digest)

    def discard(self, digest: str) -> None:
        """Remove what there is of an image that cannot be finished, unless it is held or being filled."""
        with suppress(Busy):
            if self._store.partial(digest):
                self._store.remove(digest)
