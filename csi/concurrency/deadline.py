"""A cancellable limit on how long one call may wait."""

from __future__ import annotations

import threading
import time


class Deadline:
    """Limit on how long one call may wait.

    Any thread may `cancel` it, or `wake` its waiter to check its condition again.
    """

    def __init__(self, seconds: float) -> None:
        """Start a deadline that expires `seconds` from now."""
        self._expires_at = time.monotonic() + seconds
        self._event = threading.Event()
        self.cancelled = ""

    @property
    def is_over(self) -> bool:
        """Whether waiting has ended, by cancellation or timeout."""
        return bool(self.cancelled) or time.monotonic() >= self._expires_at

    def cancel(self, reason: str) -> None:
        """End the waiting; `reason` becomes part of the error sent to the caller.

        The first reason is kept.
        """
        self.cancelled = self.cancelled or reason
        self._event.set()

    def wake(self) -> None:
        """Make `sleep` return, so that its caller checks its condition again."""
        self._event.set()

    def sleep(self) -> None:
        """Wait until woken, cancelled or out of time."""
        # A cancelled deadline keeps its event set, so that every later `sleep` returns at once.
        self._event.wait(max(0.0, self._expires_at - time.monotonic()))
        if not self.cancelled:
            self._event.clear()
