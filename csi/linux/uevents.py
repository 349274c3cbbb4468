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

_START_SECONDS = 5.0
# From <linux/netlink.h>; what udev sends goes to another group.
_NETLINK_KOBJECT_UEVENT, _KERNEL = 15, 1
# Of lib/kobject_uevent.c, UEVENT_BUFFER_SIZE is 2048, and the path comes before it.
_LONGEST_EVENT = 8192


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
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT) as events:
            events.bind((0, _KERNEL))
            listening.set()
            while True:
                if _may_be_of_a_block_device(events):
                    with self._heard:
                        self._heard.notify_all()


def _may_be_of_a_block_device(events: socket.socket) -> bool:
    try:
        return b"SUBSYSTEM=block" in events.recv(_LONGEST_EVENT).split(b"\0")
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return True  # some were lost: whoever waits looks for itself
