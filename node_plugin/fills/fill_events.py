"""Events and status of fills, for the pods and PVCs that wait for them.

A short fill causes none; a longer one is reported with its progress now and then, and once when it is done.
"""

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

# Reasons of the Events.
FILLING_REASON = "CacheFilling"
READY_REASON = "CacheReady"
FAILED_REASON = "CacheFillFailed"
CLAMPED_REASON = "PerformanceClamped"
PINNED_REASON = "CachePinned"
# Seconds.
_FIRST_EVENT_DELAY, _EVENT_INTERVAL, _STATUS_INTERVAL = 5.0, 15.0, 5.0
_CHECK_INTERVAL = 1.0
# Bounds the memory of repeated failures; the oldest is forgotten first.
_MAX_FAILURES = 256
_PERSISTENT = "PersistentVolumeClaim"


@dataclass
class _Listener:
    """One volume that waits for a fill.

    `event_due` and `status_due` are times of the monotonic clock; `has_status` is whether the registry shows
    a progress that must be cleared.
    """

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
    """Reporter of one node's fills to `recorder`, from a thread that runs while there are any.

    Thread-safe; no method waits for the API server. `first_event_delay` and `event_interval` are seconds.
    """

    def __init__(
        self,
        recorder: EventRecorder | None = None,
        first_event_delay: float = _FIRST_EVENT_DELAY,
        event_interval: float = _EVENT_INTERVAL,
    ) -> None:
        self._recorder = recorder or NullEventRecorder()
        self._first_event_delay, self._event_interval = first_event_delay, event_interval
        self._lock = threading.Lock()
        self._fills: dict[str, _ObservedFill] = {}
        self._failures: OrderedDict[ObjectReference, tuple[str, float]] = OrderedDict()
        self._thread: threading.Thread | None = None

    def on_volume_waiting(self, volume_id: str, digest: str, reference: ObjectReference | None) -> None:
        """Report the running fill of an image to `reference`, if any, until it or the volume ends."""
        if reference is None:
            return
        now = time.monotonic()
        with self._lock:
            fill = self._fills.setdefault(digest, _ObservedFill(now))
            first_due = now + self._first_event_delay
            # kubelet's retries call this again: they must not restart the delay.
            fill.listeners.setdefault(volume_id, _Listener(reference, first_due, first_due))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._report_until_idle, name="fill-events", daemon=True
                )
                self._thread.start()

    def on_progress(self, digest: str, progress: FillProgress) -> None:
        """Update the progress of a fill."""
        # Without the lock: this is called for each progress event, and both steps are atomic.
        fill = self._fills.get(digest)
        if fill:
            fill.progress = progress

    def on_fill_ended(self, digest: str, error: Exception | None) -> None:
        """Stop reporting a fill; record an Event of its success for each volume that has one of its progress.

        Its error is recorded by the calls that fail with it (`record_failures`): a volume with another
        credential or source tries again.
        """
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
        """Stop reporting to a volume that is unstaged or unpublished."""
        with self._lock:
            removed = [
                fill.listeners.pop(volume_id) for fill in self._fills.values() if volume_id in fill.listeners
            ]
        for listener in removed:
            self._clear_status(volume_id, listener)

    @contextmanager
    def record_failures(self, reference: ObjectReference | None) -> Iterator[None]:
        """Record an Event if the block fails, unless the volume only has to wait."""
        try:
            yield
        except (Busy, FillStopped):
            raise
        except DataCacheError as error:
            if reference:
                self._record_failure(reference, str(error))
            raise

    def record_clamped_limits(self, reference: ObjectReference | None, limits: Limits | None) -> None:
        """Record which limits were lowered to fit the volume's size, if any."""
        if reference and limits and limits.notes:
            message = f"{'; '.join(limits.notes)}; request a larger size, or less performance"
            self._recorder.record(reference, CLAMPED_REASON, message, warning=True)

    def record_pin(self, reference: ObjectReference | None, pin: CachePin | None) -> None:
        """Record which content the namespace's pin gives the volume, if it has a pin."""
        if reference and pin:
            self._recorder.record(reference, PINNED_REASON, pin.summary)

    def _record_failure(self, reference: ObjectReference, message: str) -> None:
        # kubelet retries after half a second, one, two, ...: the same failure is one Event per interval.
        now = time.monotonic()
        with self._lock:
            last_message, recorded_at = self._failures.pop(reference, ("", 0.0))
            is_repeated = last_message == message and now - recorded_at < self._event_interval
            self._failures[reference] = (message, recorded_at if is_repeated else now)
            while len(self._failures) > _MAX_FAILURES:
                self._failures.popitem(last=False)
        if not is_repeated:
            self._recorder.record(reference, FAILED_REASON, message, warning=True)

    def _clear_status(self, volume_id: str, listener: _Listener) -> None:
        if listener.has_status:
            self._recorder.report_fill(volume_id, None)

    def _report_until_idle(self) -> None:
        while True:
            time.sleep(max(0.01, min(_CHECK_INTERVAL, self._first_event_delay)))
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
            listener.event_due = now + self._event_interval
            listener.has_event = True
            self._recorder.record(listener.reference, FILLING_REASON, _describe_progress(progress))
        # Only a PVC has a CacheVolume, whose status shows the progress.
        if now >= listener.status_due and listener.reference.kind == _PERSISTENT:
            listener.status_due = now + _STATUS_INTERVAL
            listener.has_status = True
            self._recorder.report_fill(volume_id, compute_percent(progress))


def compute_percent(progress: FillProgress) -> int:
    """Return the percentage of an image that is present, 100 only if it is complete."""
    return int(100 * progress.bytes_done / progress.bytes_total) if progress.bytes_total else 0


def _describe_progress(progress: FillProgress) -> str:
    if not progress.bytes_total:
        return "the fill has not begun yet: this node fills other images first, or its worker is starting"
    copied = (
        f", {format_size(progress.bytes_copied)} of it from other images" if progress.bytes_copied else ""
    )
    sizes = f"{format_size(progress.bytes_done)} of {format_size(progress.bytes_total)}"
    done = f"{sizes} ({compute_percent(progress)}%){copied}"
    left = "" if progress.seconds_left is None else f", about {_format_seconds(progress.seconds_left)} left"
    return f"{done}, {progress.rate_text}{left}"


def _describe_ready(digest: str, progress: FillProgress, seconds: float) -> str:
    bytes_per_second = round((progress.bytes_fetched + progress.bytes_copied) / max(seconds, 0.001))
    return (
        f"image {digest[:12]} is on the node: {format_size(progress.bytes_total)} "
        f"in {_format_seconds(seconds)}, {format_size(bytes_per_second)}/s"
    )


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
