"""The smallest ONC RPC client: one NULL call over TCP (RFC 5531), to see whether a server answers."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

PORTMAPPER, NFS, MOUNT = (100000, 2), (100003, 3), (100005, 3)
_LAST_FRAGMENT = 0x8000_0000


def answers(host: str, port: int, program: tuple[int, int], timeout: float = 2.0) -> bool:
    """Whether `program` (number, version) behind `host`:`port` accepts a NULL call within `timeout`
    seconds."""
    call = struct.pack(">10I", 1, 0, 2, program[0], program[1], 0, 0, 0, 0, 0)
    with suppress(OSError), socket.create_connection((host, port), timeout) as connection:
        connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(call)) + call)
        reply = connection.recv(64)
        return len(reply) >= 28 and struct.unpack(">7I", reply[:28])[6] == 0
    return False


# Below those that the kernel gives to connections (ip_local_port_range): no other socket takes one before its
# server listens there.
_PORTS = range(10_000, 32_000)
_SHARE = 1_000
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
# Each of the processes that run tests at a time has ports of its own, in turn, so that two never take the
# same.
_own = itertools.cycle(_PORTS[_worker * _SHARE % len(_PORTS) :][:_SHARE])
for _ in range(os.getpid() % _SHARE):
    next(_own)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now, and that nobody else of these tests is
    given."""
    for port in itertools.islice(_own, _SHARE):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"{_SHARE} ports from {_PORTS[0]} on are all taken")


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    """Whether `true` became so within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False
