"""The smallest ONC RPC client: one NULL call over TCP (RFC 5531), to see whether a server answers."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable

PORTMAPPER, NFS, MOUNT = (100000, 2), (100003, 3), (100005, 3)
_LAST_FRAGMENT = 0x8000_0000


def answers(host: str, port: int, program: tuple[int, int], timeout: float = 2.0) -> bool:
    """Whether `program` (number, version) behind `host`:`port` accepts a NULL call within `timeout` seconds."""
    call = struct.pack(">10I", 1, 0, 2, program[0], program[1], 0, 0, 0, 0, 0)
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout) as connection:
        connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(call)) + call)
        reply = connection.recv(64)
        return len(reply) >= 28 and struct.unpack(">7I", reply[:28])[6] == 0
    return False


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    """Whether `true` became so within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False
