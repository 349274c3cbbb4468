"""A network namespace to fetch in, and the rate at which its devices take what comes (setns(2), tc(8), over pyroute2).

What arrives cannot be queued where it arrives, so every device's packets go through one intermediate device (ifb), whose
token bucket (tbf) lets them on at the rate. All that fetches in the namespace shares it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from csi.errors import UnsupportedByNode

DEVICE = "datacache-in"
_BURST_BYTES = 256 << 10
# Enough for a stream to fill the line, too little to hold others up.
_QUEUE_SECONDS = 0.1
_INGRESS = 0xFFFF0000
_PRIORITY = 4242
_LOOPBACK = 0x8
_ALL_PROTOCOLS = socket.htons(socket.ntohs(0x0003))
_MATCH_ALL = ["0x0/0x0+0"]


def enter(path: str) -> None:
    """Move this process into the network namespace at `path`; call before it has other threads. Raises UnsupportedByNode."""
    try:
        netns.setns(path, flags=0)
    except OSError as error:
        raise UnsupportedByNode(f"the network namespace {path} of an egress profile cannot be entered: {error.strerror}; make it there") from error


def shape(rate: int) -> None:
    """Let what comes to this process's network namespace on at `rate` bits per second; done again, it is done once. Raises UnsupportedByNode."""
    try:
        with IPRoute() as route:
            middle = _middle(route)
            route.tc("replace", "tbf", middle, rate=rate // 8, burst=_BURST_BYTES, limit=_BURST_BYTES + int(_QUEUE_SECONDS * rate / 8))
            for link in route.get_links():
                if not _is_ours(link):
                    _redirect(route, link["index"], middle)
    except (NetlinkError, OSError) as error:
        reason = f"the rate of an egress profile cannot be set ({error}); the kernel needs ifb, tbf, u32 and mirred, and the plugin CAP_NET_ADMIN"
        raise UnsupportedByNode(reason) from error


def _middle(route: IPRoute) -> int:
    found = route.link_lookup(ifname=DEVICE)
    if not found:
        _unless_there(lambda: route.link("add", ifname=DEVICE, kind="ifb"))
        found = route.link_lookup(ifname=DEVICE)
    route.link("set", index=found[0], state="up")
    return int(found[0])


def _redirect(route: IPRoute, device: int, middle: int) -> None:
    _unless_there(lambda: route.tc("add", "ingress", device, handle=_INGRESS))
    if any(found["info"] >> 16 == _PRIORITY for found in route.get_filters(index=device, parent=_INGRESS)):
        return
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": middle}
    route.tc("add-filter", "u32", device, parent=_INGRESS, prio=_PRIORITY, protocol=_ALL_PROTOCOLS, target=0, keys=_MATCH_ALL, action=action)


def _is_ours(link: Any) -> bool:
    return bool(link["flags"] & _LOOPBACK) or link.get_attr("IFLA_IFNAME") == DEVICE


def _unless_there(make: Callable[[], object]) -> None:
    try:
        make()
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
