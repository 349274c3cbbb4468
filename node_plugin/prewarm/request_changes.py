"""Changes of prewarm requests while a node works on them: what must be listed again, what must stop."""

from __future__ import annotations

import threading
import time

from csi.concurrency.deadline import Deadline

_CHANGED_MESSAGE = "the prewarm requests for this node have changed"


class RequestChanges:
    """Changes since the last listing. `on_changed` and `stop` are for other threads, all else for the loop's.

    A changed request cancels the work on it at once; changes of others have the requests listed again as
    soon as the time given to `work_for` has passed.
    """

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._changed_names: set[str] = set()
        self._current_name = ""
        self._deadline = Deadline(0)
        self._work_until = 0.0
        self.is_stopped = False

    def on_changed(self, name: str) -> None:
        """Cancel the work on the changed request; other requests are listed again when it is their time."""
        self._changed_names.add(name)
        self._changed.set()
        if name == self._current_name:
            self._deadline.cancel(_CHANGED_MESSAGE)

    def stop(self) -> None:
        """Wake the loop and cancel what it waits for, for good."""
        self.is_stopped = True
        self.on_changed(self._current_name)

    def take(self) -> bool:
        """Return whether a request has changed since the last call."""
        if not self._changed.is_set():
            return False
        # In this order: a change in between is listed now, and once more after the next call.
        self._changed.clear()
        self._changed_names.clear()
        return True

    def wait(self, seconds: float) -> None:
        """Wait until a request changes, at most `seconds`."""
        if not self.is_stopped:
            self._changed.wait(seconds)

    def work_for(self, seconds: float) -> None:
        """Have changes of other requests wait for `seconds`, so that the node gets to work."""
        self._work_until = time.monotonic() + seconds

    def begin_work(self, name: str) -> None:
        """Set the name of the request whose changes cancel `new_deadline`."""
        self._current_name = name

    def new_deadline(self, seconds: float) -> Deadline:
        """Return a deadline in `seconds`, cancelled as soon as the current request changes."""
        self._deadline = deadline = Deadline(seconds)
        if self._is_current_changed:
            deadline.cancel(_CHANGED_MESSAGE)
        return deadline

    @property
    def _is_current_changed(self) -> bool:
        return self.is_stopped or self._current_name in self._changed_names

    @property
    def is_sync_due(self) -> bool:
        """Whether the requests must be listed again before the next one is worked on."""
        return self.is_stopped or (self._changed.is_set() and time.monotonic() > self._work_until)

    @property
    def should_yield(self) -> bool:
        """Whether the work on the current request must stop now."""
        return self._is_current_changed or self.is_sync_due
