"""The lab's network: the control plane is joined by a pair of devices to this machine and to each node, and
passes on between them.

A lab has 100.N.0.0/16, of the addresses that are shared between carrier and customer (RFC 6598): 100.N.0.1 is
this machine (where tests put the origins that pods read) and so is 100.N.0.3, for an origin of two hosts;
100.N.0.2 is the control plane, 100.N.K.2 node K, and 100.N.(100+K).0/24 has the pods of node K.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.cluster.spaces import Space

# Where the API server is for pods: the first of --service-cluster-ip-range. There is no kube-proxy, the
# control plane has this very address.
SERVICES = "10.96.0.0/24"
KUBERNETES = "10.96.0.1"
_NUMBERS = range(65, 100)


@dataclass(frozen=True)
class Network:
    """The addresses of the lab numbered `number`."""

    number: int

    @property
    def outside(self) -> str:
        """This machine, as the lab sees it."""
        return f"100.{self.number}.0.1"

    @property
    def outside_too(self) -> str:
        """This machine, as another host."""
        return f"100.{self.number}.0.3"

    @property
    def control(self) -> str:
        """The control plane."""
        return f"100.{self.number}.0.2"

    def node(self, number: int) -> str:
        """A node; nodes are numbered from 1."""
        return f"100.{self.number}.{number}.2"

    def pods(self, number: int) -> str:
        """The network of a node's pods."""
        return f"100.{self.number}.{100 + number}.0/24"


@contextmanager
def joined(control: Space) -> Iterator[Network]:
    """Join the control plane to this machine, in a network that is free here."""
    used = {route["dst"] for route in json.loads(_ip("-j", "route"))}
    for number in _NUMBERS:
        network = Network(number)
        # A device's name is taken once: two labs that start together have two numbers.
        if f"100.{number}.0.0/16" not in used and _taken(number, control):
            break
    else:
        raise AssertionError(
            f"no network from 100.{_NUMBERS[0]}.0.0/16 to 100.{_NUMBERS[-1]}.0.0/16 is free here"
        )
    try:
        for address in (network.outside, network.outside_too):
            _ip("addr", "add", f"{address}/24", "dev", _device(number))
        _ip("link", "set", _device(number), "up")
        _ip("route", "add", f"100.{number}.0.0/16", "via", network.control, "dev", _device(number))
        control.run("ip", "addr", "add", f"{network.control}/24", "dev", "outside")
        control.run("ip", "addr", "add", f"{KUBERNETES}/32", "dev", "lo")
        control.run("ip", "route", "add", "default", "via", network.outside)
        yield network
    finally:
        subprocess.run(["ip", "link", "delete", _device(number)], capture_output=True)


def join(control: Space, node: Space, network: Network, number: int) -> None:
    """Join a node to the control plane; what joins them goes with either."""
    name = f"node-{number}"
    # The pair of a node that was just switched off may still be on its way out.
    control.run("sh", "-c", f"ip link delete {name} 2>/dev/null || true")
    _ip(
        "link",
        "add",
        "eth0",
        "netns",
        str(node.pid),
        "type",
        "veth",
        "peer",
        "name",
        name,
        "netns",
        str(control.pid),
    )
    gateway = f"100.{network.number}.{number}.1"
    node.run("ip", "addr", "add", f"{network.node(number)}/24", "dev", "eth0")
    node.run("ip", "link", "set", "eth0", "up")
    node.run("ip", "route", "add", "default", "via", gateway)
    control.run("ip", "addr", "add", f"{gateway}/24", "dev", name)
    control.run("ip", "link", "set", name, "up")
    control.run("ip", "route", "add", network.pods(number), "via", network.node(number))


def _device(number: int) -> str:
    return f"dccluster{number}"


def _taken(number: int, control: Space) -> bool:
    words = [
        "link",
        "add",
        _device(number),
        "type",
        "veth",
        "peer",
        "name",
        "outside",
        "netns",
        str(control.pid),
    ]
    if subprocess.run(["ip", *words], capture_output=True).returncode != 0:
        return False
    control.run("ip", "link", "set", "outside", "up")
    return True


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout
