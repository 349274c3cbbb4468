"""How far a fill is, how fast it goes, and how long it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_WINDOW = 5.0
_INTERVAL = 0.2


@dataclass(frozen=True)
class FillProgress:
    """`bytes_done` of `bytes_total` file bytes are in the image and verified, `bytes_fetched` came from the origin in this process.

    `bytes_copied` of those done came from other images of the source.
    `rate` is in bytes a second over the last five seconds, `seconds_left` what that rate makes of the rest (None: no rate yet).
    """

    bytes_done: int = 0
    bytes_total: int = 0
    bytes_fetched: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    bytes_copied: int = 0

    def shown(self) -> str:
        """The progress for people: MiB done and in all, MiB that other images had, MiB/s, seconds left."""
        copied = f" ({self.bytes_copied / 2**20:.0f} MiB from other images)" if self.bytes_copied else ""
        left = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
        return f"{self.bytes_done / 2**20:.0f} of {self.bytes_total / 2**20:.0f} MiB{copied}, {self.rate / 2**20:.0f} MiB/s{left}"


class ProgressMeter:
    """Turns counts into FillProgress and hands it to `tell`, at most five times a second."""

    def __init__(self, total: int, tell: Callable[[FillProgress], None] | None, now: Callable[[], float] = time.monotonic) -> None:
        self._total, self._tell, self._now = total, tell, now
        self._samples: deque[tuple[float, int]] = deque()
        self._last = float("-inf")

    def update(self, done: int, fetched: int, copied: int = 0, *, final: bool = False) -> None:
        """Take the counts of now, in bytes; `final` is always told."""
        now = self._now()
        if self._tell is None or (now - self._last < _INTERVAL and not final):
            return
        self._last = now
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW:
            self._samples.popleft()
        self._tell(self._progress(done, fetched, copied))

    def _progress(self, done: int, fetched: int, copied: int) -> FillProgress:
        (first_time, first_done), (last_time, last_done) = self._samples[0], self._samples[-1]
        elapsed = last_time - first_time
        rate = (last_done - first_done) / elapsed if elapsed > 0 else 0.0
        left = (self._total - done) / rate if rate > 0 else None
        return FillProgress(done, self._total, fetched, rate, 0.0 if done == self._total else left, copied)
