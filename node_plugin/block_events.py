"""The kernel's uevents of block devices, so that nobody has to poll for a loop device to become free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pyroute2.netlink.uevent import UeventSocket

_START_SECONDS = 5.0


class BlockEvents:
    """Wakes waiters at each event; its thread starts with the first of them. Thread-safe."""

    def __init__(self) -> None:
        self._heard = threading.Condition()
        self._thread: threading.Thread | None = None

    def wait(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Look at `holds` now and at every event until it is true, at most `seconds`; whether it became true."""
        end = time.monotonic() + seconds
        with self._heard:
            self._start()
            while not holds():
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._heard.wait(left)
        return True

    def _start(self) -> None:
        if self._thread is None:
            listening = threading.Event()
            self._thread = threading.Thread(target=self._listen, args=(listening,), name="uevents", daemon=True)
            self._thread.start()
            listening.wait(_START_SECONDS)

    def _listen(self, listening: threading.Event) -> None:
        with UeventSocket() as events:
            events.bind()
            listening.set()
            while True:
                if any(event.get("SUBSYSTEM") == "block" for event in events.get()):
                    with self._heard:
                        self._heard.notify_all()
