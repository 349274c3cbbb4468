"""What people are told while an image is filled for their volume: nothing of a short fill, then how far it is, then that it is there."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from csi.errors import Busy, DataCacheError, FillStopped
from csi.images.progress import FillProgress
from csi.performance.limits import Limits
from csi.registry.events.recorder import EventRecorder, NullEventRecorder, ObjectReference
from csi.registry.pins.pins import CachePin
from csi.values import format_size

FILLING_REASON, READY_REASON, FAILED_REASON, CLAMPED_REASON, PINNED_REASON = (
    "CacheFilling",
    "CacheReady",
    "CacheFillFailed",
    "PerformanceClamped",
    "CachePinned",
)
"""The reasons of the Events."""
_FIRST_EVENT_DELAY, _EVENT_INTERVAL, _STATUS_INTERVAL = 5.0, 15.0, 5.0
_CHECK_INTERVAL = 1.0
_MAX_FAILURES = 256
_PERSISTENT = "PersistentVolumeClaim"


@dataclass
class _Listener:
    """One volume that a fill is for; `event_due` is when its object is told next, `has_status` what its registry's entry says."""

    reference: ObjectReference
    event_due: float
    status_due: float
    has_event: bool = False
    has_status: bool = False


@dataclass
class _ObservedFill:
    started_at: float
    progress: FillProgress = field(default_factory=FillProgress)
    listeners: dict[str, _Listener] = field(default_factory=dict)


class FillEvents:
    """The fills of one node, told to people by `announcer`, from a thread that runs while there are any. Thread-safe; nothing waits or raises."""

    def __init__(
        self,
        recorder: EventRecorder | None = None,
        first_delay: float = _FIRST_EVENT_DELAY,
        interval: float = _EVENT_INTERVAL,
    ) -> None:
        self._recorder, self._first_delay, self._interval = (
            recorder or NullEventRecorder(),
            first_delay,
            interval,
        )
        self._lock = threading.Lock()
        self._fills: dict[str, _ObservedFill] = {}
        self._failures: OrderedDict[ObjectReference, tuple[str, float]] = OrderedDict()
        self._thread: threading.Thread | None = None

    def on_volume_waiting(self, volume_id: str, digest: str, reference: ObjectReference | None) -> None:
        """A volume waits for the fill of an image, which runs; None is nobody to be told."""
        if reference is None:
            return
        now = time.monotonic()
        with self._lock:
            fill = self._fills.setdefault(digest, _ObservedFill(now))
            fill.listeners.setdefault(
                volume_id, _Listener(reference, now + self._first_delay, now + self._first_delay)
            )
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._report_until_idle, name="fill-events", daemon=True
                )
                self._thread.start()

    def on_progress(self, digest: str, progress: FillProgress) -> None:
        """How far a fill is now."""
        fill = self._fills.get(digest)
        if fill:
            fill.progress = progress

    def on_fill_ended(self, digest: str, error: Exception | None) -> None:
        """A fill is over. What ended it is told to those whose calls fail by it: others began it, perhaps with another credential."""
        with self._lock:
            fill = self._fills.pop(digest, None)
        if fill is None:
            return
        seconds = time.monotonic() - fill.started_at
        for volume_id, listener in fill.listeners.items():
            self._clear_status(volume_id, listener)
            if error is None and listener.has_event:
                self._recorder.record(
                    listener.reference, READY_REASON, _describe_ready(digest, fill.progress, seconds)
                )

    def on_volume_removed(self, volume_id: str) -> None:
        """A volume was taken away."""
        with self._lock:
            removed = [
                fill.listeners.pop(volume_id) for fill in self._fills.values() if volume_id in fill.listeners
            ]
        for listener in removed:
            self._clear_status(volume_id, listener)

    @contextmanager
    def record_failures(self, reference: ObjectReference | None) -> Iterator[None]:
        """Tell what the block fails with, unless it only has to be waited for."""
        try:
            yield
        except (Busy, FillStopped):
            raise
        except DataCacheError as error:
            if reference:
                self._record_failure(reference, str(error))
            raise

    def record_clamped_limits(self, reference: ObjectReference | None, limits: Limits | None) -> None:
        """Tell what was lowered to fit the volume's size, if anything."""
        if reference and limits and limits.notes:
            message = f"{'; '.join(limits.notes)}; ask for a larger size, or for less"
            self._recorder.record(reference, CLAMPED_REASON, message, warning=True)

    def record_pin(self, reference: ObjectReference | None, pin: CachePin | None) -> None:
        """Tell what a moving source stands for in the namespace, if the volume has one."""
        if reference and pin:
            self._recorder.record(reference, PINNED_REASON, pin.summary)

    def _record_failure(self, reference: ObjectReference, message: str) -> None:
        # kubelet tries again after half a second, one, two, ...
        now = time.monotonic()
        with self._lock:
            text, when = self._failures.pop(reference, ("", 0.0))
            is_repeated = text == message and now - when < self._interval
            self._failures[reference] = (message, when if is_repeated else now)
            while len(self._failures) > _MAX_FAILURES:
                self._failures.popitem(last=False)
        if not is_repeated:
            self._recorder.record(reference, FAILED_REASON, message, warning=True)

    def _clear_status(self, volume_id: str, listener: _Listener) -> None:
        if listener.has_status:
            self._recorder.report_fill(volume_id, None)

    def _report_until_idle(self) -> None:
        while True:
            time.sleep(max(0.01, min(_CHECK_INTERVAL, self._first_delay)))
            with self._lock:
                if not self._fills:
                    self._thread = None
                    return
                for fill in self._fills.values():
                    for volume_id, listener in fill.listeners.items():
                        self._report_progress(volume_id, listener, fill.progress)

    def _report_progress(self, volume_id: str, listener: _Listener, progress: FillProgress) -> None:
        now = time.monotonic()
        if now >= listener.event_due:
            listener.event_due, listener.has_event = now + self._interval, True
            self._recorder.record(listener.reference, FILLING_REASON, _describe_progress(progress))
        if now >= listener.status_due and listener.reference.kind == _PERSISTENT:
            listener.status_due, listener.has_status = now + _STATUS_INTERVAL, True
            self._recorder.report_fill(volume_id, percent(progress))


def percent(progress: FillProgress) -> int:
    """How much of an image is there, 100 only when all is."""
    return int(100 * progress.bytes_done / progress.bytes_total) if progress.bytes_total else 0


def _describe_progress(progress: FillProgress) -> str:
    if not progress.bytes_total:
        return "the fill has not begun yet: this node fills other images first, or its worker starts"
    copied = (
        f", {format_size(progress.bytes_copied)} of it from other images" if progress.bytes_copied else ""
    )
    done = f"{format_size(progress.bytes_done)} of {format_size(progress.bytes_total)} ({percent(progress)}%){copied}"
    left = "" if progress.seconds_left is None else f", about {_format_seconds(progress.seconds_left)} left"
    return f"{done}, {progress.rate_text}{left}"


def _describe_ready(digest: str, progress: FillProgress, seconds: float) -> str:
    here = progress.bytes_fetched + progress.bytes_copied
    return f"image {digest[:12]} is on the node: {format_size(progress.bytes_total)} in {_format_seconds(seconds)}, {format_size(round(here / max(seconds, 0.001)))}/s"


def _format_seconds(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
