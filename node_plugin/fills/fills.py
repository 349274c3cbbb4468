"""Fills in the background: one for each image, begun by the first volume that wants it, waited for by all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from csi.concurrency.deadline import Deadline
from csi.concurrency.wait_limiter import WaitLimiter
from csi.errors import (
    Busy,
    CorruptContent,
    DataCacheError,
    FillStopped,
    NoSpace,
    SourceChanged,
    UnsafeContent,
)
from csi.image_store.client import ImageStoreClient, StoredImageLookup
from csi.images.node_store.provenance import IMAGE_STORE_SCOPE
from csi.images.node_store.reuse_candidates import reserve_with_candidates
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress, write_progress
from csi.parameters.origin_scope import has_same_origin_scope
from csi.registry.events.recorder import ObjectReference
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.protocol import WorkerRequest
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.verification import OriginVerification

log = logging.getLogger("datacache.fill")

# After these the bytes so far are of no use to a next try.
UNRECOVERABLE = (CorruptContent, SourceChanged, UnsafeContent)
_PROGRESS_FILE_INTERVAL = 0.5
_PODS_FIRST_MESSAGE = "fills that pods wait for go first"


@dataclass
class _RunningFill:
    digest: str
    access: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    origin_scope: str
    is_prefetch: bool = False
    reuse_candidates: list[Path] = field(default_factory=list)
    reservation: ExitStack = field(default_factory=ExitStack)
    call: WorkerCall = field(default_factory=WorkerCall)
    progress: FillProgress = field(default_factory=FillProgress)
    waiters: set[Deadline] = field(default_factory=set)
    prefetchers: set[Deadline] = field(default_factory=set)
    """Who has it filled ahead of any pod: a fill of nobody else gives way to others."""
    wanted_at: float = field(default_factory=time.monotonic)
    error: Exception | None = None
    is_done: bool = False
    reported_at: float = 0.0


class Fills:
    """The fills of one node. A fill that nobody has waited for during `grace` seconds is stopped; its bytes stay. Thread-safe."""

    def __init__(
        self,
        store: Store,
        pool: WorkerPool,
        wait_limiter: WaitLimiter,
        *,
        connections: int,
        grace: float,
        list_in_use: Callable[[], set[str]],
        events: FillEvents | None = None,
        image_store: ImageStoreClient | None = None,
    ) -> None:
        self._store, self._pool, self._wait_limiter, self._image_store = (
            store,
            pool,
            wait_limiter,
            image_store,
        )
        self._connections, self._grace, self._list_in_use = connections, grace, list_in_use
        self._events = events or FillEvents()
        self._verification = OriginVerification(store, pool, wait_limiter, connections)
        self._lock = threading.Lock()
        self._fills: dict[str, _RunningFill] = {}
        self._list_prewarmed: Callable[[], set[str]] = set

    def wait(
        self,
        key: str,
        digest: str,
        secrets: Mapping[str, str],
        deadline: Deadline,
        access: Mapping[str, str] | None = None,
        reference: ObjectReference | None = None,
        is_trusted: bool = False,
    ) -> None:
        """Return when the image is sealed, beginning its fill where none runs, and known to be what this volume's place holds.

        Its manifest must be in the store. `key` is the volume whose call waits, `access` its pinned spec: another repository may
        hold the same image, but what opens the one need not open the other. Without it the manifest in the store says where to
        read. `is_trusted` says that the place is known to hold the image's bytes. `reference` is told of the fill. Raises Busy with the progress
        when `deadline` ends first, NoSpace at once when the image cannot fit, what ended the fill, and what `OriginVerification.wait` raises where
        the bytes came from another place.
        """
        while not self._store.find_sealed(digest):
            with self._wait_limiter.slot(key, deadline):
                fill = self._join(digest, access or {}, secrets, deadline, (key, reference))
                while not fill.is_done and not deadline.is_over:
                    deadline.sleep()
                self._leave(fill, deadline)
            if not fill.is_done or deadline.cancelled:
                raise Busy(
                    deadline.cancelled
                    or f"filling the cache: {fill.progress.format()}; call again, the fill goes on"
                )
            # What ended a fill that another volume began, elsewhere or with another credential, says nothing about this one's.
            if fill.error and (fill.access, fill.secrets) == (access or {}, secrets):
                raise fill.error
        access = access or self._store.read_access(digest)
        if is_trusted:
            self.mark_verified(digest, access, secrets)
        self._verification.wait(key, digest, secrets, deadline, access)

    def mark_verified(self, digest: str, access: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        """Let the sealed image count for a place that is known to hold its bytes; raises NotFound where the image is gone."""
        origin_scope = self._store.compute_origin_scope(access, secrets)
        if origin_scope not in self._store.get_provenance(digest):
            self._store.mark_verified(digest, origin_scope)

    def verify_against_origin(
        self, key: str, digest: str, secrets: Mapping[str, str], deadline: Deadline, access: Mapping[str, str]
    ) -> None:
        """Return when the sealed image is known to be what `access` reads; raises as `OriginVerification.wait`."""
        self._verification.wait(key, digest, secrets, deadline, access)

    def prefetch(
        self, digest: str, secrets: Mapping[str, str], access: Mapping[str, str], deadline: Deadline
    ) -> None:
        """As `wait`, for an image that no pod has asked for yet: it goes last, and gives way to every fill that a pod waits for.

        It takes no seat and asks no origin about a sealed image. Raises Busy with the progress, or when others go first, NoSpace, and
        what ended the fill.
        """
        if self._store.find_sealed(digest):
            return
        if self.has_waiting_pods(digest):
            raise Busy(_PODS_FIRST_MESSAGE)
        fill = self._join(digest, access, secrets, None, prefetcher=deadline)
        while not fill.is_done and not deadline.is_over:
            deadline.sleep()
        with self._lock:
            fill.prefetchers.discard(deadline)
            fill.wanted_at = time.monotonic()
        if not fill.is_done or deadline.cancelled:
            raise Busy(deadline.cancelled or fill.progress.format())
        if (
            fill.error
            and not isinstance(fill.error, Busy | FillStopped)
            and (fill.access, fill.secrets) == (access, secrets)
        ):
            raise fill.error
        if fill.error:
            raise Busy(_PODS_FIRST_MESSAGE)

    def protect_prewarmed(self, list_prewarmed: Callable[[], set[str]]) -> None:
        """No fill evicts what `list_prewarmed` names, either."""
        self._list_prewarmed = list_prewarmed

    def has_waiting_pods(self, digest: str = "") -> bool:
        """Whether a pod waits for a fill, of another image than `digest`."""
        with self._lock:
            return any(fill.waiters for fill in self._fills.values() if fill.digest != digest)

    def preempt_prefetches(self, digest: str = "") -> bool:
        """Stop the fills, or that of `digest`, that go ahead of any pod and that none waits for; whether there were any. Their bytes stay."""
        with self._lock:
            return self._preempt_prefetches(digest)

    def _preempt_prefetches(self, digest: str = "") -> bool:
        stopped = [
            fill
            for fill in self._fills.values()
            if fill.is_prefetch and not fill.waiters and digest in ("", fill.digest)
        ]
        for fill in stopped:
            fill.call.stop()
        return bool(stopped)

    def start(self, digest: str, secrets: Mapping[str, str]) -> None:
        """Begin or go on with a fill without waiting for it; no image goes for one that nobody may want. Raises NoSpace."""
        self._join(digest, {}, secrets, None)

    def progress(self) -> dict[str, FillProgress]:
        """How far each fill under way is, by digest."""
        with self._lock:
            return {digest: fill.progress for digest, fill in self._fills.items()}

    def stop(self) -> None:
        """Stop all fills, whose bytes stay, and comparisons."""
        self._verification.stop()
        with self._lock:
            fills = list(self._fills.values())
        for fill in fills:
            fill.call.stop()

    def _join(
        self,
        digest: str,
        access: Mapping[str, str],
        secrets: Mapping[str, str],
        deadline: Deadline | None,
        listener: tuple[str, ObjectReference | None] = ("", None),
        prefetcher: Deadline | None = None,
    ) -> _RunningFill:
        with self._lock:
            fill = self._fills.get(digest)
            if fill is None:
                fill = self._start(digest, access, secrets, deadline, prefetcher)
            if prefetcher:
                fill.prefetchers.add(prefetcher)
            if deadline:
                fill.waiters.add(deadline)
                self._events.on_volume_waiting(listener[0], digest, listener[1])
            return fill

    def _start(
        self,
        digest: str,
        access: Mapping[str, str],
        secrets: Mapping[str, str],
        deadline: Deadline | None,
        prefetcher: Deadline | None,
    ) -> _RunningFill:
        origin_scope = self._store.compute_origin_scope(access or self._store.read_access(digest), secrets)
        fill = _RunningFill(
            digest, dict(access), dict(secrets), origin_scope, is_prefetch=prefetcher is not None
        )
        has_preempted = deadline is not None and self._preempt_prefetches()
        try:
            fill.reuse_candidates = fill.reservation.enter_context(
                reserve_with_candidates(
                    self._store,
                    digest,
                    fill.origin_scope,
                    self._list_protected if deadline or prefetcher else self._list_all,
                )
            )
        except NoSpace:
            if has_preempted:
                raise Busy("a fill that goes ahead of its pods makes room; call again") from None
            raise
        self._fills[digest] = fill
        threading.Thread(target=self._run_fill, args=(fill,), name="fill", daemon=True).start()
        return fill

    def _list_protected(self) -> set[str]:
        return self._list_in_use() | self._list_prewarmed()

    def _list_all(self) -> set[str]:
        return {image.digest for image in self._store.list_images()}

    def _leave(self, fill: _RunningFill, deadline: Deadline) -> None:
        with self._lock:
            fill.waiters.discard(deadline)
            fill.wanted_at = time.monotonic()

    def _run_fill(self, fill: _RunningFill) -> None:
        started = time.monotonic()
        try:
            paths = self._store.paths(fill.digest)
            origin_scope, sought = self._choose_byte_source(fill)
            request = WorkerRequest(
                "fill",
                fill.access,
                fill.secrets,
                manifest=str(paths.manifest),
                partial=str(paths.partial),
                journal=str(paths.journal),
                image=str(paths.image),
                connections=self._connections,
                reuse_candidates=tuple(map(str, fill.reuse_candidates)),
            )
            self._store.mark_filling_from(fill.digest, origin_scope)
            self._pool.call(
                "fill", sought.add_to(request), fill.call, lambda progress: self._on_progress(fill, progress)
            )
            fields = {
                "image": fill.digest,
                "bytes": fill.progress.bytes_total,
                "copied": fill.progress.bytes_copied,
                "s": round(time.monotonic() - started, 2),
            }
            log.info("image sealed", extra={"fields": fields})
        except Exception as error:
            self._on_failure(fill, error)
        self._finish(fill)

    def _choose_byte_source(self, fill: _RunningFill) -> tuple[str, StoredImageLookup]:
        """Find the place that the bytes will come from, and what the image store has of them."""
        sought = self._image_store.find_for_fill(fill.digest) if self._image_store else StoredImageLookup()
        access = fill.access or self._store.read_access(fill.digest)
        is_same_scope = sought.found is None or has_same_origin_scope(sought.found.access, access)
        # Another's bytes, which this place would have to send too before its volumes have them.
        return fill.origin_scope if is_same_scope else IMAGE_STORE_SCOPE, sought

    def _on_progress(self, fill: _RunningFill, progress: FillProgress) -> None:
        fill.progress = progress
        self._events.on_progress(fill.digest, progress)
        self._write_progress_file(fill)
        with self._lock:
            is_abandoned = (
                not fill.waiters and not fill.prefetchers and time.monotonic() - fill.wanted_at > self._grace
            )
        if is_abandoned:
            fill.call.stop()

    def _write_progress_file(self, fill: _RunningFill) -> None:
        """Put the progress where `datacache images` reads it, now and then."""
        now = time.monotonic()
        if now - fill.reported_at < _PROGRESS_FILE_INTERVAL:
            return
        fill.reported_at = now
        with suppress(OSError):
            write_progress(self._store.paths(fill.digest).progress, fill.progress)

    def _on_failure(self, fill: _RunningFill, error: Exception) -> None:
        fill.error = error
        text = str(error) if isinstance(error, DataCacheError) else type(error).__name__
        log.warning(
            "fill ended",
            extra={"fields": {"image": fill.digest, "progress": fill.progress.format(), "reason": text}},
        )

    def _finish(self, fill: _RunningFill) -> None:
        # A disk that fails here must not leave a fill that never ends.
        with suppress(OSError):
            self._store.paths(fill.digest).progress.unlink(missing_ok=True)
        with self._lock:
            fill.is_done = True
            del self._fills[fill.digest]
            fill.reservation.close()
            self._events.on_fill_ended(fill.digest, fill.error)
            for deadline in fill.waiters | fill.prefetchers:
                deadline.wake()
        if isinstance(fill.error, UNRECOVERABLE):
            self.discard(fill.digest)

    def discard(self, digest: str) -> None:
        """Remove what there is of an image that cannot be finished, unless it is held or being filled."""
        with suppress(Busy):
            if self._store.find_partial(digest):
                self._store.remove(digest)
