"""How far a fill is, how fast it goes, and how long it will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from csi.values import human

_WINDOW, _LONGEST_WINDOW = 5.0, 60.0
# Bytes are counted a chunk at a time, and over a slow line all connections may be in the middle of one for longer than the window.
_PAUSES = 3
_INTERVAL = 0.2


@dataclass(frozen=True)
class FillProgress:
    """`bytes_done` of `bytes_total` file bytes are in the image and verified, `bytes_fetched` came from the origin in this process.

    `bytes_copied` of those done came from other images of the source.
    `rate` is in bytes a second over the last five seconds, or over a few pauses between chunks where those are longer; `seconds_left` is
    what that rate makes of the rest (None: no rate yet).
    """

    bytes_done: int = 0
    bytes_total: int = 0
    bytes_fetched: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    bytes_copied: int = 0

    @property
    def speed(self) -> str:
        """`rate` for people: "1.2 MiB/s"."""
        return f"{human(round(self.rate))}/s"

    def shown(self) -> str:
        """The progress for people: MiB done and in all, MiB that other images had, bytes a second, seconds left."""
        copied = f" ({self.bytes_copied / 2**20:.0f} MiB from other images)" if self.bytes_copied else ""
        left = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
        return f"{self.bytes_done / 2**20:.0f} of {self.bytes_total / 2**20:.0f} MiB{copied}, {self.speed}{left}"


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
        if not self._samples or self._samples[-1][1] != done:
            self._samples.append((now, done))
        rate = self._rate(now)
        left = (self._total - done) / rate if rate > 0 else None
        self._tell(FillProgress(done, self._total, fetched, rate, 0.0 if done == self._total else left, copied))

    def _rate(self, now: float) -> float:
        pause = max((later - earlier for (earlier, _), (later, _) in pairwise(self._samples)), default=0.0)
        window = min(max(_WINDOW, _PAUSES * pause), _LONGEST_WINDOW)
        while len(self._samples) > 2 and now - self._samples[1][0] >= window:
            self._samples.popleft()
        (first_time, first_done), (last_time, last_done) = self._samples[0], self._samples[-1]
        if now - last_time > window:
            return 0.0
        # Nothing new for no longer than usual is no slowing down.
        end = last_time if now - last_time <= pause else now
        return (last_done - first_done) / (end - first_time) if end > first_time else 0.0
