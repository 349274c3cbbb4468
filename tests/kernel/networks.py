"""Network namespaces of the test's own, each joined to this one by a pair of devices."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi.linux.network_namespace import IFB_DEVICE

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Network:
    """A namespace: it has `address`, and reaches this machine at `host`."""

    name: str
    host: str
    address: str

    @property
    def path(self) -> str:
        """What an egress profile calls it."""
        return f"/run/netns/{self.name}"

    def let_on(self) -> int:
        """Bytes that the profile's rate has let on so far; 0 before there is one."""
        shown = subprocess.run(
            ["ip", "-n", self.name, "-j", "-s", "link", "show", "dev", IFB_DEVICE],
            capture_output=True,
            text=True,
        )
        return int(json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"]) if shown.returncode == 0 else 0

    def rate(self) -> int:
        """The profile's rate as the kernel holds it, in bits per second."""
        shown = subprocess.run(
            ["tc", "-n", self.name, "-j", "qdisc", "show", "dev", IFB_DEVICE],
            capture_output=True,
            text=True,
            check=True,
        )
        (bucket,) = (one for one in json.loads(shown.stdout) if one["kind"] == "tbf")
        return int(bucket["options"]["rate"]) * 8


@contextmanager
def network() -> Iterator[Network]:
    """One network, of addresses that are for tests (RFC 2544); all of it goes at the end."""
    number = next(_numbers)
    one = Network(f"datacache-test-{os.getpid()}-{number}", f"198.18.{number}.1", f"198.18.{number}.2")
    outer, inner = f"dct{os.getpid()}o{number}"[-15:], f"dct{os.getpid()}i{number}"[-15:]
    _ip("netns", "add", one.name)
    try:
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", one.name)
        for space, device, address in (((), outer, one.host), (("-n", one.name), inner, one.address)):
            _ip(*space, "addr", "add", f"{address}/24", "dev", device)
            _ip(*space, "link", "set", device, "up")
        yield one
    finally:
        # The pair goes with the namespace that one of it is in.
        _ip("netns", "delete", one.name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
