"""Progress of a fill: how much is done, how fast, and how much time is left."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from csi.linux.durable_files import TEMP_SUFFIX, check_keys
from csi.values import format_size

# Seconds.
_MIN_RATE_WINDOW, _MAX_RATE_WINDOW = 5.0, 60.0
# Bytes are counted by whole chunks. On a slow link every connection may be in the middle of a chunk for
# longer than the minimum window, so the window covers several of the longest pauses between two counts.
_PAUSES_PER_WINDOW = 3
_REPORT_INTERVAL = 0.2


@dataclass(frozen=True)
class FillProgress:
    """The progress of a fill at one moment.

    `bytes_done` of `bytes_total` file bytes are in the image and verified. Of those done, `bytes_copied` came
    from other images; `bytes_fetched` were fetched in this process. `rate` is in bytes per second
    over the last five seconds, or over a few pauses between chunks if those are longer. `seconds_left`
    extrapolates that rate (None: no rate yet).
    """

    bytes_done: int = 0
    bytes_total: int = 0
    bytes_fetched: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    bytes_copied: int = 0

    def to_json(self) -> dict[str, Any]:
        """Convert to the JSON used in the progress file and on the worker's pipe."""
        return {
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "bytes_fetched": self.bytes_fetched,
            "rate": self.rate,
            "seconds_left": self.seconds_left,
            "bytes_copied": self.bytes_copied,
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> FillProgress:
        """Read what `to_json` wrote; raises TypeError for an unknown key."""
        check_keys(
            stored, "bytes_done", "bytes_total", "bytes_fetched", "rate", "seconds_left", "bytes_copied"
        )
        return FillProgress(
            bytes_done=stored.get("bytes_done", 0),
            bytes_total=stored.get("bytes_total", 0),
            bytes_fetched=stored.get("bytes_fetched", 0),
            rate=stored.get("rate", 0.0),
            seconds_left=stored.get("seconds_left"),
            bytes_copied=stored.get("bytes_copied", 0),
        )

    @property
    def rate_text(self) -> str:
        """`rate` for people: "1.2 MiB/s"."""
        return f"{format_size(round(self.rate))}/s"

    def format(self) -> str:
        """Format for people: MiB done and in total, MiB from other images, rate, seconds left."""
        copied = f" ({self.bytes_copied / 2**20:.0f} MiB from other images)" if self.bytes_copied else ""
        remaining = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
        done = f"{self.bytes_done / 2**20:.0f} of {self.bytes_total / 2**20:.0f} MiB"
        return f"{done}{copied}, {self.rate_text}{remaining}"


def write_progress(path: Path, progress: FillProgress) -> None:
    """Write the progress file at `path` atomically; raises OSError.

    It is not synced, since it is worthless after a power cut.
    """
    # Readers poll the file, and must never see half of it.
    temporary = path.with_name(path.name + TEMP_SUFFIX)
    temporary.write_text(json.dumps(progress.to_json()))
    temporary.rename(path)


def read_progress(path: Path) -> FillProgress | None:
    """Read the progress file at `path`; return None if no fill is running or the file is damaged."""
    with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):
        return FillProgress.from_json(json.loads(path.read_text()))
    return None


class ProgressMeter:
    """Computes FillProgress from byte counts and reports it at most five times per second."""

    def __init__(
        self,
        total: int,
        on_progress: Callable[[FillProgress], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._on_progress, self._clock = total, on_progress, clock
        self._samples: deque[tuple[float, int]] = deque()
        self._reported_at = float("-inf")

    def update(self, done: int, fetched: int, copied: int = 0, *, final: bool = False) -> None:
        """Record the current counts in bytes; `final` is always reported."""
        now = self._clock()
        if self._on_progress is None or (now - self._reported_at < _REPORT_INTERVAL and not final):
            return
        self._reported_at = now
        if not self._samples or self._samples[-1][1] != done:
            self._samples.append((now, done))
        rate = self._rate(now)
        seconds_left = (self._total - done) / rate if rate > 0 else None
        self._on_progress(
            FillProgress(
                done, self._total, fetched, rate, 0.0 if done == self._total else seconds_left, copied
            )
        )

    def _rate(self, now: float) -> float:
        pause = max((later - earlier for (earlier, _), (later, _) in pairwise(self._samples)), default=0.0)
        window = min(max(_MIN_RATE_WINDOW, _PAUSES_PER_WINDOW * pause), _MAX_RATE_WINDOW)
        # Keep one sample from before the window, so that the rate covers all of it.
        while len(self._samples) > 2 and now - self._samples[1][0] >= window:
            self._samples.popleft()
        (first_time, first_done), (last_time, last_done) = self._samples[0], self._samples[-1]
        if now - last_time > window:
            return 0.0
        # A pause no longer than usual does not lower the rate: the window ends at the last count.
        end = last_time if now - last_time <= pause else now
        return (last_done - first_done) / (end - first_time) if end > first_time else 0.0
