"""What people are told while an image is filled for their volume: nothing of a short fill, then how far it is, then that it is there."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from csi.errors import Busy, DataCacheError
from csi.images.progress import FillProgress
from csi.performance.limits import Limits
from csi.registry.events.recorder import Announcer, Silent, Subject
from csi.registry.pins.pins import CachePin
from csi.values import human

FILLING, READY, FAILED, CLAMPED, PINNED = "CacheFilling", "CacheReady", "CacheFillFailed", "PerformanceClamped", "CachePinned"
"""The reasons of the Events."""
_FIRST_SECONDS, _EVERY_SECONDS, _SHOWN_EVERY_SECONDS = 5.0, 15.0, 5.0
_LOOK_SECONDS = 1.0
_MOST_FAILURES = 256
_PERSISTENT = "PersistentVolumeClaim"


@dataclass
class _Listener:
    """One volume that a fill is for; `due` is when its object is told next, `shown` what its registry's entry says."""

    subject: Subject
    due: float
    due_shown: float
    said: bool = False
    shown: bool = False


@dataclass
class _Fill:
    began: float
    progress: FillProgress = field(default_factory=FillProgress)
    listeners: dict[str, _Listener] = field(default_factory=dict)


class FillEvents:
    """The fills of one node, told to people by `announcer`, from a thread that runs while there are any. Thread-safe; nothing waits or raises."""

    def __init__(self, announcer: Announcer | None = None, first_seconds: float = _FIRST_SECONDS, every_seconds: float = _EVERY_SECONDS) -> None:
        self._announcer, self._first, self._every = announcer or Silent(), first_seconds, every_seconds
        self._guard = threading.Lock()
        self._fills: dict[str, _Fill] = {}
        self._failures: OrderedDict[Subject, tuple[str, float]] = OrderedDict()
        self._thread: threading.Thread | None = None

    def joined(self, volume_id: str, digest: str, subject: Subject | None) -> None:
        """A volume waits for the fill of an image, which runs; None is nobody to be told."""
        if subject is None:
            return
        now = time.monotonic()
        with self._guard:
            fill = self._fills.setdefault(digest, _Fill(now))
            fill.listeners.setdefault(volume_id, _Listener(subject, now + self._first, now + self._first))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fill-events", daemon=True)
                self._thread.start()

    def progressed(self, digest: str, progress: FillProgress) -> None:
        """How far a fill is now."""
        fill = self._fills.get(digest)
        if fill:
            fill.progress = progress

    def ended(self, digest: str, error: Exception | None) -> None:
        """A fill is over. What ended it is told to those whose calls fail by it: others began it, perhaps with another credential."""
        with self._guard:
            fill = self._fills.pop(digest, None)
        if fill is None:
            return
        seconds = time.monotonic() - fill.began
        for volume_id, listener in fill.listeners.items():
            self._hide(volume_id, listener)
            if error is None and listener.said:
                self._announcer.announce(listener.subject, READY, _ready(digest, fill.progress, seconds))

    def left(self, volume_id: str) -> None:
        """A volume was taken away."""
        with self._guard:
            gone = [fill.listeners.pop(volume_id) for fill in self._fills.values() if volume_id in fill.listeners]
        for listener in gone:
            self._hide(volume_id, listener)

    @contextmanager
    def failures(self, subject: Subject | None) -> Iterator[None]:
        """Tell what the block fails with, unless it only has to be waited for."""
        try:
            yield
        except Busy:
            raise
        except DataCacheError as error:
            if subject:
                self._fail(subject, str(error))
            raise

    def clamped(self, subject: Subject | None, limits: Limits | None) -> None:
        """Tell what was lowered to fit the volume's size, if anything."""
        if subject and limits and limits.notes:
            message = f"{'; '.join(limits.notes)}; ask for a larger size, or for less"
            self._announcer.announce(subject, CLAMPED, message, warning=True)

    def pinned(self, subject: Subject | None, pin: CachePin | None) -> None:
        """Tell what a moving source stands for in the namespace, if the volume has one."""
        if subject and pin:
            self._announcer.announce(subject, PINNED, pin.words)

    def _fail(self, subject: Subject, message: str) -> None:
        # kubelet tries again after half a second, one, two, ...
        now = time.monotonic()
        with self._guard:
            text, when = self._failures.pop(subject, ("", 0.0))
            again = text == message and now - when < self._every
            self._failures[subject] = (message, when if again else now)
            while len(self._failures) > _MOST_FAILURES:
                self._failures.popitem(last=False)
        if not again:
            self._announcer.announce(subject, FAILED, message, warning=True)

    def _hide(self, volume_id: str, listener: _Listener) -> None:
        if listener.shown:
            self._announcer.filling(volume_id, None)

    def _run(self) -> None:
        while True:
            time.sleep(max(0.01, min(_LOOK_SECONDS, self._first)))
            with self._guard:
                if not self._fills:
                    self._thread = None
                    return
                for fill in self._fills.values():
                    for volume_id, listener in fill.listeners.items():
                        self._tell(volume_id, listener, fill.progress)

    def _tell(self, volume_id: str, listener: _Listener, progress: FillProgress) -> None:
        now = time.monotonic()
        if now >= listener.due:
            listener.due, listener.said = now + self._every, True
            self._announcer.announce(listener.subject, FILLING, _filling(progress))
        if now >= listener.due_shown and listener.subject.kind == _PERSISTENT:
            listener.due_shown, listener.shown = now + _SHOWN_EVERY_SECONDS, True
            self._announcer.filling(volume_id, percent(progress))


def percent(progress: FillProgress) -> int:
    """How much of an image is there, 100 only when all is."""
    return int(100 * progress.bytes_done / progress.bytes_total) if progress.bytes_total else 0


def _filling(progress: FillProgress) -> str:
    if not progress.bytes_total:
        return "the fill has not begun yet: this node fills other images first, or its worker starts"
    copied = f", {human(progress.bytes_copied)} of it from other images" if progress.bytes_copied else ""
    done = f"{human(progress.bytes_done)} of {human(progress.bytes_total)} ({percent(progress)}%){copied}"
    left = "" if progress.seconds_left is None else f", about {_span(progress.seconds_left)} left"
    return f"{done}, {progress.speed}{left}"


def _ready(digest: str, progress: FillProgress, seconds: float) -> str:
    here = progress.bytes_fetched + progress.bytes_copied
    return f"image {digest[:12]} is on the node: {human(progress.bytes_total)} in {_span(seconds)}, {human(round(here / max(seconds, 0.001)))}/s"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
