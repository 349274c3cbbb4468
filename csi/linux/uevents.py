"""The kernel's uevents of block devices, so that nobody has to poll for a loop device to become free.

Source: netlink(7), NETLINK_KOBJECT_UEVENT: datagrams to group 1, "ACTION@DEVPATH" and then KEY=VALUE, each ended by NUL. Read without
pyroute2, whose import would keep 5 to 9 MB in the node plugin for ever (asyncio, sqlite3 and all of its sockets).
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable

_START_TIMEOUT = 5.0
# From <linux/netlink.h>; what udev sends goes to another group.
_NETLINK_KOBJECT_UEVENT, _KERNEL = 15, 1
# Of lib/kobject_uevent.c, UEVENT_BUFFER_SIZE is 2048, and the path comes before it.
_MAX_EVENT_BYTES = 8192


class BlockUevents:
    """Wakes waiters at each event; its thread starts with the first of them. Thread-safe."""

    def __init__(self) -> None:
        self._received = threading.Condition()
        self._thread: threading.Thread | None = None

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Look at `condition` now and at every event until it is true, at most `timeout`; whether it became true."""
        end = time.monotonic() + timeout
        with self._received:
            self._start()
            while not condition():
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._received.wait(left)
        return True

    def _start(self) -> None:
        if self._thread is None:
            listening = threading.Event()
            self._thread = threading.Thread(
                target=self._listen, args=(listening,), name="uevents", daemon=True
            )
            self._thread.start()
            listening.wait(_START_TIMEOUT)

    def _listen(self, listening: threading.Event) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT) as events:
            events.bind((0, _KERNEL))
            listening.set()
            while True:
                if _receive_block_event(events):
                    with self._received:
                        self._received.notify_all()


def _receive_block_event(events: socket.socket) -> bool:
    try:
        return b"SUBSYSTEM=block" in events.recv(_MAX_EVENT_BYTES).split(b"\0")
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return True  # some were lost: whoever waits looks for itself
