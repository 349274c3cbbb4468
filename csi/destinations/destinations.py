"""Where a request may point: which addresses an origin, and what it redirects to, may have.

An address that an administrator named may be any. Nobody else's word, no redirect among them, leads a node to its own
services, to its neighbours or to a cloud's metadata service, unless the operator lists that destination (--allow-origins). Names are
judged by the addresses they resolve to, at the moment of connecting: see `csi.sources.http.guarded_pools`. Behind a proxy it is the proxy
that resolves names; only addresses that are written as such are judged here then.
"""

from __future__ import annotations

import argparse
import functools
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple
from urllib.parse import urlsplit

from csi.errors import InvalidParameter, PermissionDenied

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
# RFC 6052, 2.1: an IPv4 address in the last 32 bits.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# RFC 4291, 2.5.5.1: deprecated, and still read as IPv4 by some.
_COMPATIBLE = ipaddress.ip_network("::/96")
# Services of a cloud for its own machines that no range tells from others: Alibaba, Azure, Oracle, AWS and Google over IPv6.
_METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")))

# RFC 4291, 2.4, and what IANA has given out of it.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# RFC 1122, 3.2.1.3: "this host on this network".
_THIS_HOST = ipaddress.ip_network("0.0.0.0/8")
_BROADCAST = ipaddress.ip_address("255.255.255.255")


ORIGINS_HELP = (
    "hosts and networks, by commas (host, host:port, *.domain, 10.0.0.0/8), that inline volumes and annotations of PVCs may name "
    "and that origins may redirect to though they are private, loopback or link-local"
)


class Reach(IntEnum):
    """From where an address can be reached; the higher, the nearer to the node."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    LINK_LOCAL = 3
    NOWHERE = 4


_WORDS = {
    Reach.PRIVATE: "an address of a private network",
    Reach.LOOPBACK: "the node itself",
    Reach.LINK_LOCAL: "an address of the link or of a cloud's metadata service",
    Reach.NOWHERE: "no address of a host",
}


def reach(address: str) -> Reach:
    """Where the numeric `address` can be reached from; IPv4 addresses inside IPv6 ones (mapped, NAT64, 6to4) count as themselves."""
    ip = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if ip in _METADATA or ip.is_link_local:
        return Reach.LINK_LOCAL
    # To connect to the unspecified address is to connect to oneself.
    if ip.is_loopback or ip.is_unspecified or ip in _THIS_HOST:
        return Reach.LOOPBACK
    if ip.is_multicast or ip == _BROADCAST:
        return Reach.NOWHERE
    public = ip.is_global and (ip.version == 4 or ip in _GLOBAL_UNICAST)
    return Reach.PUBLIC if public else Reach.PRIVATE


def _unwrapped(ip: _Ip) -> _Ip:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    inner = ip.ipv4_mapped or ip.sixtofour
    if inner is None and (ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1)):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return inner or ip


class _Rule(NamedTuple):
    """One destination that the operator lists: a network, or a name that may begin with "*."; `port` None for all."""

    network: _Network | None
    name: str
    port: int | None

    def lets(self, host: str, port: int, address: str) -> bool:
        return self.port in (None, port) and (self.lets_name(host) or self.lets_address(address))

    def lets_name(self, host: str) -> bool:
        if self.network is not None:
            return False
        return host.endswith(self.name[1:]) if self.name.startswith("*.") else host == self.name

    def lets_address(self, address: str) -> bool:
        if self.network is None:
            return False
        ip = ipaddress.ip_address(address.partition("%")[0])
        return ip in self.network or _unwrapped(ip) in self.network


@functools.lru_cache(maxsize=256)
def _rule(text: str) -> _Rule:
    if network := _network(text):
        return _Rule(network, "", None)
    try:
        parts = urlsplit(f"//{text.lower()}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    is_plain = text.lower() in (host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}")
    if is_plain and (network := _network(host)):
        return _Rule(network, "", port)
    if not is_plain or not _NAME.fullmatch(host):
        raise InvalidParameter(f"{text!r} is no destination; write a host, host:port, *.domain, an address or a network (10.0.0.0/8)")
    return _Rule(None, host, port)


def _network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def destinations(text: str) -> tuple[str, ...]:
    """The value of --allow-origins, by commas. Raises argparse.ArgumentTypeError naming the one that is no host, host:port, *.domain or network."""
    found = tuple(item.strip() for item in text.split(",") if item.strip())
    try:
        for item in found:
            _rule(item)
    except InvalidParameter as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return found


def is_destination(text: str) -> bool:
    """Whether `text` can be on the operator's list."""
    try:
        _rule(text)
    except InvalidParameter:
        return False
    return True


def is_listed(allowed: Iterable[str], address: str) -> bool:
    """Whether "host" or "host:port" is on the operator's list as it is written, without asking what the name resolves to."""
    parts = urlsplit(f"//{address.lower()}")
    host = parts.hostname or ""
    numeric = next(iter(literal(host)), "")
    rules = (_rule(item) for item in allowed)
    ports = {None, parts.port} if parts.port else {None, 80, 443}
    return any(rule.port in ports and (rule.lets_name(host) or bool(numeric and rule.lets_address(numeric))) for rule in rules)


@dataclass(frozen=True)
class Destinations:
    """`allowed` as the operator listed them (see `destinations`); `trusted` where the first address is an administrator's word."""

    allowed: tuple[str, ...] = ()
    trusted: bool = True

    def with_operators(self, host: str) -> Destinations:
        """These and `host` ("host" or "host:port"), a hub that the operator chose, whoever names a repository of it."""
        return self if self.trusted or not is_destination(host) else replace(self, allowed=(*self.allowed, host))

    def farthest(self, home: str | None, proxied: bool = False) -> Reach:
        """The nearest reach that is allowed unlisted: of a first address (`home` None), or of what the host `home` redirects to.
        `proxied` where a proxy asks that host: its name is not resolved here then. Raises socket.gaierror as `resolved` does.

        What a redirect leads to is nothing that cannot be reached from where the origin itself is: from a mirror on the
        loopback to the loopback, from a private network to a private network, and never to a link.
        """
        if home is None:
            return Reach.NOWHERE if self.trusted else Reach.PUBLIC
        if not self.trusted:
            return Reach.PUBLIC
        own = min(map(reach, literal(home) if proxied else _home(home)), default=Reach.PUBLIC)
        return own if own <= Reach.LOOPBACK else Reach.PUBLIC

    def check(self, host: str, port: int, addresses: Iterable[str], farthest: Reach) -> list[str]:
        """Those of `addresses`, which `host` has, that may be connected to; raises PermissionDenied when none may."""
        found, refused = self._parted(host, port, addresses, farthest)
        if not found:
            raise _refusal(host, port, refused)
        return found

    def check_all(self, host: str, port: int, addresses: Iterable[str], farthest: Reach) -> None:
        """As `check`, for a client that chooses among `addresses` itself: raises PermissionDenied when there is one that may not be connected to."""
        found, refused = self._parted(host, port, addresses, farthest)
        if refused or not found:
            raise _refusal(host, port, refused)

    def _parted(self, host: str, port: int, addresses: Iterable[str], farthest: Reach) -> tuple[list[str], list[str]]:
        name = _plain(host)
        found, refused = list[str](), list[str]()
        for address in addresses:
            allowed = reach(address) <= farthest or any(_rule(item).lets(name, port, address) for item in self.allowed)
            (found if allowed else refused).append(address)
        return found, refused

    def check_literal(self, host: str, port: int, farthest: Reach) -> None:
        """As `check` for a host that is written as an address, in any spelling, or as localhost; other names pass."""
        addresses = literal(host)
        if addresses:
            self.check(host, port, addresses, farthest)


def _refusal(host: str, port: int, refused: list[str]) -> PermissionDenied:
    host = _plain(host)
    where = f"{host}:{port} is {refused[-1]}, {_WORDS[reach(refused[-1])]}" if refused else f"{host}:{port} has no address"
    return PermissionDenied(f"{where}, which may not be asked here; if it should be, start the plugin with --allow-origins {host}")


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def literal(host: str) -> list[str]:
    """The address that `host` spells (127.1 and 0x7f000001 too), nothing for a name."""
    host = _plain(host)
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        return [socket.inet_ntoa(socket.inet_aton(host))]
    except (OSError, UnicodeError):
        return []


def resolved(host: str, port: int) -> list[str]:
    """The numeric addresses of `host`, in the resolver's order. Raises socket.gaierror, or UnicodeError for what can be no name."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


@functools.lru_cache(maxsize=64)
def _home(host: str) -> tuple[str, ...]:
    """Kept: it is asked for with every redirect, and gives a redirect no more than its origin could have given itself."""
    return tuple(resolved(host, 0))
