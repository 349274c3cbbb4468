"""Background fills: at most one per image, started by the first volume that needs it, joined by others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
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
from csi.images.node_store.reuse_candidates import reserve_with_candidates
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress, write_progress
from csi.parameters.content_ref import ContentRef
from csi.registry.events.recorder import ObjectReference
from csi.worker.pool import WorkerCall
from node_plugin.fills.fill_events import FillEvents
from node_plugin.fills.fill_runner import FillRunner

log = logging.getLogger("datacache.fill")

# After these errors the partial image is of no use to the next attempt.
UNRECOVERABLE = (CorruptContent, SourceChanged, UnsafeContent)
# Seconds.
_PROGRESS_FILE_INTERVAL = 0.5
# The prewarm loop waits in slices, and does not count as waiting for a moment between two of them.
_MIN_PREFETCH_GRACE = 10.0
PODS_FIRST_MESSAGE = "fills that pods wait for go first"


@dataclass(eq=False)
class _RunningFill:
    """A running fill. `waiters` are calls for pods, `prefetchers` those for prewarm requests.

    A prefetch without waiters may be preempted. `wanted_at` is when the last of them left.
    """

    content: ContentRef
    is_prefetch: bool = False
    reuse_candidates: list[Path] = field(default_factory=list)
    reservation: ExitStack = field(default_factory=ExitStack)
    call: WorkerCall = field(default_factory=WorkerCall)
    progress: FillProgress = field(default_factory=FillProgress)
    waiters: set[Deadline] = field(default_factory=set)
    prefetchers: set[Deadline] = field(default_factory=set)
    wanted_at: float = field(default_factory=time.monotonic)
    error: Exception | None = None
    is_done: bool = False
    reported_at: float = 0.0

    @property
    def digest(self) -> str:
        return self.content.digest


class ProtectedImages:
    """The images that no fill may evict: those in use, and those kept by prewarm requests."""

    def __init__(self, list_in_use: Callable[[], set[str]]) -> None:
        self._listers = [list_in_use]

    def add(self, list_digests: Callable[[], set[str]]) -> None:
        """Also protect the images that `list_digests` returns."""
        self._listers.append(list_digests)

    def list_digests(self) -> set[str]:
        """List the digests of all protected images."""
        return {digest for list_digests in self._listers for digest in list_digests()}


class Fills:
    """The fills of one node. Thread-safe.

    A fill that no call has waited for during `grace` seconds is stopped; its partial image stays.
    """

    def __init__(
        self,
        store: Store,
        runner: FillRunner,
        wait_limiter: WaitLimiter,
        protected: ProtectedImages,
        grace: float,
        events: FillEvents | None = None,
    ) -> None:
        self._store, self._runner, self._wait_limiter = store, runner, wait_limiter
        self._protected, self._grace, self._events = protected, grace, events or FillEvents()
        self._lock = threading.Lock()
        self._fills: dict[str, _RunningFill] = {}

    def ensure_sealed(
        self,
        volume_id: str,
        content: ContentRef,
        deadline: Deadline,
        reference: ObjectReference | None = None,
    ) -> None:
        """Return when the image of `content` is sealed, starting its fill if none is running.

        Its manifest must be in the store. `volume_id` is the volume whose call waits; Events of the fill are
        recorded for `reference`. Raises Busy with the progress if `deadline` ends first, NoSpace at once if
        the image cannot fit, and what ended the fill.
        """
        while not self._store.find_sealed(content.digest):
            with self._wait_limiter.slot(volume_id, deadline):
                fill = self._join(content, deadline, (volume_id, reference))
                self._wait_until_done(fill, deadline, fill.waiters)
            if not fill.is_done or deadline.cancelled:
                raise Busy(
                    deadline.cancelled
                    or f"filling the cache: {fill.progress.format()}; call again, the fill goes on"
                )
            # The error of a fill from another source or with another credential may not apply to this one.
            if fill.error and fill.content == content:
                raise fill.error

    def prefetch(self, content: ContentRef, deadline: Deadline) -> None:
        """Fill an image that no pod has requested yet, behind every fill that a pod waits for.

        As `ensure_sealed`, but without a slot of the wait limiter. Raises Busy with the progress, or if other
        fills go first, NoSpace, and what ended the fill.
        """
        if self._store.find_sealed(content.digest):
            return
        if self.has_waiting_pods(content.digest):
            raise Busy(PODS_FIRST_MESSAGE)
        fill = self._join(content, None, prefetcher=deadline)
        self._wait_until_done(fill, deadline, fill.prefetchers)
        if not fill.is_done or deadline.cancelled:
            raise Busy(deadline.cancelled or fill.progress.format())
        if fill.error and not isinstance(fill.error, Busy | FillStopped) and fill.content == content:
            raise fill.error
        # It was stopped (preempted, abandoned, shutdown), or a fill of this image from another source or with
        # another credential failed, which says nothing about this one.
        if fill.error:
            has_waiting_pods = self.has_waiting_pods(content.digest)
            raise Busy(PODS_FIRST_MESSAGE if has_waiting_pods else "the fill ended early; it is tried again")

    def has_waiting_pods(self, digest: str = "") -> bool:
        """Return whether a pod waits for the fill of another image than `digest`."""
        with self._lock:
            return any(fill.waiters for fill in self._fills.values() if fill.digest != digest)

    def preempt_prefetches(self, digest: str = "") -> bool:
        """Stop the prefetches (or that of `digest`) that no pod waits for; return whether there were any.

        Their partial images stay.
        """
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

    def start(self, content: ContentRef) -> None:
        """Start or resume a fill without waiting for it and without eviction. Raises NoSpace."""
        self._join(content, None)

    def get_progress(self) -> dict[str, FillProgress]:
        """Return the progress of each running fill by digest."""
        with self._lock:
            return {digest: fill.progress for digest, fill in self._fills.items()}

    def stop(self) -> None:
        """Stop all fills; their partial images stay."""
        with self._lock:
            fills = list(self._fills.values())
        for fill in fills:
            fill.call.stop()

    def discard(self, digest: str) -> None:
        """Remove the partial image of a fill that cannot succeed, unless it is held or being filled."""
        with suppress(Busy):
            if self._store.find_partial(digest):
                self._store.remove(digest)

    def _join(
        self,
        content: ContentRef,
        waiter: Deadline | None,
        listener: tuple[str, ObjectReference | None] = ("", None),
        prefetcher: Deadline | None = None,
    ) -> _RunningFill:
        with self._lock:
            fill = self._fills.get(content.digest)
            if fill is None:
                fill = self._start(content, waiter, prefetcher)
            if prefetcher:
                fill.prefetchers.add(prefetcher)
            if waiter:
                fill.waiters.add(waiter)
                self._events.on_volume_waiting(listener[0], content.digest, listener[1])
            return fill

    def _start(
        self, content: ContentRef, waiter: Deadline | None, prefetcher: Deadline | None
    ) -> _RunningFill:
        origin_scope = self._store.compute_origin_scope(content)
        fill = _RunningFill(content, is_prefetch=prefetcher is not None)
        has_preempted = waiter is not None and self._preempt_prefetches()
        # A fill that neither a pod nor a prewarm request waits for (one resumed at a start) evicts nothing.
        list_protected = self._protected.list_digests if waiter or prefetcher else self._list_all
        try:
            reservation = reserve_with_candidates(self._store, content.digest, origin_scope, list_protected)
            fill.reuse_candidates = fill.reservation.enter_context(reservation)
        except NoSpace:
            # A stopped prefetch releases its reservation only when its worker has ended.
            if has_preempted:
                raise Busy("a prefetch is being stopped to make room; call again") from None
            raise
        self._fills[content.digest] = fill
        threading.Thread(target=self._run_fill, args=(fill,), name="fill", daemon=True).start()
        return fill

    def _list_all(self) -> set[str]:
        return {image.digest for image in self._store.list_images()}

    def _wait_until_done(self, fill: _RunningFill, deadline: Deadline, waiters: set[Deadline]) -> None:
        """Wait as one of the fill's `waiters`, until it is done or the deadline is over."""
        while not fill.is_done and not deadline.is_over:
            deadline.sleep()
        with self._lock:
            waiters.discard(deadline)
            fill.wanted_at = time.monotonic()

    def _run_fill(self, fill: _RunningFill) -> None:
        started_at = time.monotonic()
        try:
            self._runner.run(
                fill.content,
                fill.reuse_candidates,
                fill.call,
                lambda progress: self._on_progress(fill, progress),
            )
            fields = {
                "image": fill.digest,
                "bytes": fill.progress.bytes_total,
                "copied": fill.progress.bytes_copied,
                "seconds": round(time.monotonic() - started_at, 2),
            }
            log.info("image sealed", extra={"fields": fields})
        except Exception as error:
            self._on_failure(fill, error)
        self._finish(fill)

    def _on_progress(self, fill: _RunningFill, progress: FillProgress) -> None:
        fill.progress = progress
        self._events.on_progress(fill.digest, progress)
        self._write_progress_file(fill)
        with self._lock:
            idle_seconds = time.monotonic() - fill.wanted_at
            grace = max(self._grace, _MIN_PREFETCH_GRACE) if fill.is_prefetch else self._grace
            is_abandoned = not fill.waiters and not fill.prefetchers and idle_seconds > grace
        if is_abandoned:
            fill.call.stop()

    def _write_progress_file(self, fill: _RunningFill) -> None:
        """Write the progress to where `datacache images` reads it, at most twice a second."""
        now = time.monotonic()
        if now - fill.reported_at < _PROGRESS_FILE_INTERVAL:
            return
        fill.reported_at = now
        with suppress(OSError):
            write_progress(self._store.get_paths(fill.digest).progress, fill.progress)

    def _on_failure(self, fill: _RunningFill, error: Exception) -> None:
        fill.error = error
        # A foreign exception's text is not vetted for secrets.
        reason = str(error) if isinstance(error, DataCacheError) else type(error).__name__
        fields = {"image": fill.digest, "progress": fill.progress.format(), "reason": reason}
        log.warning("fill ended", extra={"fields": fields})

    def _finish(self, fill: _RunningFill) -> None:
        # A failing disk must not leave a fill that never ends for its waiters.
        with suppress(OSError):
            self._store.get_paths(fill.digest).progress.unlink(missing_ok=True)
        with self._lock:
            # Under the lock: `_join` finds either the running fill or none, and then starts a new one.
            fill.is_done = True
            del self._fills[fill.digest]
            fill.reservation.close()
            self._events.on_fill_ended(fill.digest, fill.error)
            for deadline in fill.waiters | fill.prefetchers:
                deadline.wake()
        if isinstance(fill.error, UNRECOVERABLE):
            try:
                self.discard(fill.digest)
            except DataCacheError as error:
                log.warning(
                    "partial image not removed", extra={"fields": {"image": fill.digest, "reason": error}}
                )
