"""How long one call may wait, unless its caller hangs up."""

from __future__ import annotations

import threading
import time


class Deadline:
    """How long one call may wait. `cancel` ends it from another thread; `wake` makes the waiter look again."""

    def __init__(self, seconds: float) -> None:
        """`seconds` from now on the waiting is over."""
        self._expires_at = time.monotonic() + seconds
        self._event = threading.Event()
        self.cancelled = ""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to wait for: cancelled or out of time."""
        return bool(self.cancelled) or time.monotonic() >= self._expires_at

    def cancel(self, reason: str) -> None:
        """End the waiting; `reason` goes into the answer."""
        self.cancelled = self.cancelled or reason
        self._event.set()

    def wake(self) -> None:
        """Make `sleep` return, so that its caller looks at what it waits for."""
        self._event.set()

    def sleep(self) -> None:
        """Wait until woken, cancelled or out of time."""
        self._event.wait(max(0.0, self._expires_at - time.monotonic()))
        if not self.cancelled:
            self._event.clear()
