"""Network namespace for fetches, and a limit on its ingress rate (setns(2), tc(8), through pyroute2).

Ingress cannot be queued on the receiving device. So packets of every device are redirected to one
intermediate device (ifb), whose token bucket (tbf) passes them on at the rate. All fetches in the namespace
share it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from csi.errors import UnsupportedByNode

IFB_DEVICE = "datacache-in"
_BURST_BYTES = 256 << 10
# Long enough for one stream to fill the line, short enough not to delay others.
_MAX_QUEUE_SECONDS = 0.1
# From tc(8) and <linux/if_ether.h>: the handle "ffff:" of the ingress qdisc; IFF_LOOPBACK; ETH_P_ALL; u32's
# "match all".
_INGRESS = 0xFFFF0000
# Marks this program's filter among others on the device.
_PRIORITY = 4242
_LOOPBACK = 0x8
_ALL_PROTOCOLS = socket.htons(socket.ntohs(0x0003))
_MATCH_ALL = ["0x0/0x0+0"]


def enter_namespace(path: str) -> None:
    """Move this process into the network namespace at `path`.

    Must be called before the process has other threads. Raises UnsupportedByNode.
    """
    try:
        netns.setns(path, flags=0)
    except OSError as error:
        raise UnsupportedByNode(
            f"the network namespace {path} of an egress profile cannot be entered: {error.strerror}; "
            "create it"
        ) from error


def limit_ingress_rate(rate: int) -> None:
    """Limit the ingress of this process's network namespace to `rate` bits per second.

    Repeated calls have no further effect. Raises UnsupportedByNode.
    """
    try:
        with IPRoute() as route:
            ifb = _find_or_create_ifb(route)
            route.tc(
                "replace",
                "tbf",
                ifb,
                rate=rate // 8,
                burst=_BURST_BYTES,
                limit=_BURST_BYTES + int(_MAX_QUEUE_SECONDS * rate / 8),
            )
            for link in route.get_links():
                if not _is_loopback_or_ifb(link):
                    _redirect_ingress(route, link["index"], ifb)
    except (NetlinkError, OSError) as error:
        reason = (
            f"the rate of an egress profile cannot be set ({error}); "
            "the kernel needs ifb, tbf, u32 and mirred, and the plugin CAP_NET_ADMIN"
        )
        raise UnsupportedByNode(reason) from error


def _find_or_create_ifb(route: IPRoute) -> int:
    indexes = route.link_lookup(ifname=IFB_DEVICE)
    if not indexes:
        _ignore_existing(lambda: route.link("add", ifname=IFB_DEVICE, kind="ifb"))
        indexes = route.link_lookup(ifname=IFB_DEVICE)
    route.link("set", index=indexes[0], state="up")
    return int(indexes[0])


def _redirect_ingress(route: IPRoute, device: int, ifb: int) -> None:
    _ignore_existing(lambda: route.tc("add", "ingress", device, handle=_INGRESS))
    if any(
        existing["info"] >> 16 == _PRIORITY for existing in route.get_filters(index=device, parent=_INGRESS)
    ):
        return
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": ifb}
    route.tc(
        "add-filter",
        "u32",
        device,
        parent=_INGRESS,
        prio=_PRIORITY,
        protocol=_ALL_PROTOCOLS,
        target=0,
        keys=_MATCH_ALL,
        action=action,
    )


def _is_loopback_or_ifb(link: Any) -> bool:
    return bool(link["flags"] & _LOOPBACK) or link.get_attr("IFLA_IFNAME") == IFB_DEVICE


def _ignore_existing(create: Callable[[], object]) -> None:
    try:
        create()
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
