"""Kernel uevents of block devices, so that nothing has to poll for a free loop device.

Source: netlink(7), NETLINK_KOBJECT_UEVENT: datagrams to group 1, "ACTION@DEVPATH" followed by KEY=VALUE, each
ended by NUL. Read without pyroute2, whose import would cost the node plugin 5 to 9 MB for good (asyncio,
sqlite3 and all its sockets).
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable

_START_TIMEOUT = 5.0
# From <linux/netlink.h>; messages of udev go to another group.
_NETLINK_KOBJECT_UEVENT, _KERNEL = 15, 1
# UEVENT_BUFFER_SIZE is 2048 (lib/kobject_uevent.c), and the device path precedes that buffer.
_MAX_EVENT_BYTES = 8192


class BlockUevents:
    """Wakes waiters at each block uevent. Its thread starts with the first waiter. Thread-safe."""

    def __init__(self) -> None:
        self._received = threading.Condition()
        self._thread: threading.Thread | None = None

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Check `condition` now and at every event until it is true; return whether it became true.

        Waits for at most `timeout` seconds.
        """
        end = time.monotonic() + timeout
        with self._received:
            self._start()
            while not condition():
                remaining = end - time.monotonic()
                if remaining <= 0:
                    return False
                self._received.wait(remaining)
        return True

    def _start(self) -> None:
        if self._thread is None:
            listening = threading.Event()
            self._thread = threading.Thread(
                target=self._listen, args=(listening,), name="uevents", daemon=True
            )
            self._thread.start()
            # Listen before the condition is checked first, or an event in between would be missed.
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
        return True  # ENOBUFS: the kernel dropped events, so let all waiters check for themselves
