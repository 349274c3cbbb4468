"""Destinations of requests: which addresses an origin, and what it redirects to, may have.

An address named by an administrator may be any. One named by anybody else, including by a redirect, must not
lead a node to its own services, its neighbours or a cloud's metadata service, unless the operator lists that
destination (--allow-origins). Names are judged by the addresses they resolve to, at the moment of connecting,
so that DNS rebinding gains nothing: see `csi.sources.http.guarded_pools`. Behind a proxy it is the proxy that
resolves names, and only literal addresses are judged here.
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
_HOST_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
# RFC 6052, 2.1: an IPv4 address in the last 32 bits.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# RFC 4291, 2.5.5.1: deprecated, but some stacks still connect to the IPv4 address.
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")
# Metadata services whose addresses are in no special-purpose range: Alibaba, Azure, Oracle, AWS and Google
# over IPv6.
_METADATA_ADDRESSES = frozenset(
    map(
        ipaddress.ip_address,
        ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"),
    )
)

# RFC 4291, 2.4: the only block from which IANA allocates global unicast addresses.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# RFC 1122, 3.2.1.3: "this host on this network".
_THIS_HOST = ipaddress.ip_network("0.0.0.0/8")
_BROADCAST = ipaddress.ip_address("255.255.255.255")


ORIGINS_HELP = (
    "hosts and networks, by commas (host, host:port, *.domain, 10.0.0.0/8), "
    "that inline volumes and annotations of PVCs may name "
    "and that origins may redirect to though they are private, loopback or link-local"
)


class AddressScope(IntEnum):
    """From where an address can be reached; higher is nearer to the node."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    LINK_LOCAL = 3
    NOWHERE = 4


_SCOPE_DESCRIPTIONS = {
    AddressScope.PRIVATE: "an address of a private network",
    AddressScope.LOOPBACK: "the node itself",
    AddressScope.LINK_LOCAL: "an address of the link or of a cloud's metadata service",
    AddressScope.NOWHERE: "no address of a host",
}


def classify_address(address: str) -> AddressScope:
    """Return from where the numeric `address` can be reached.

    IPv4 addresses inside IPv6 ones (mapped, NAT64, 6to4) count as the IPv4 address.
    """
    ip = _unwrap_ipv4(ipaddress.ip_address(address.partition("%")[0]))
    if ip in _METADATA_ADDRESSES or ip.is_link_local:
        return AddressScope.LINK_LOCAL
    # Linux connects to the local host for the unspecified address.
    if ip.is_loopback or ip.is_unspecified or ip in _THIS_HOST:
        return AddressScope.LOOPBACK
    if ip.is_multicast or ip == _BROADCAST:
        return AddressScope.NOWHERE
    is_public = ip.is_global and (ip.version == 4 or ip in _GLOBAL_UNICAST)
    return AddressScope.PUBLIC if is_public else AddressScope.PRIVATE


def _unwrap_ipv4(ip: _Ip) -> _Ip:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    inner = ip.ipv4_mapped or ip.sixtofour
    if inner is None and (ip in _NAT64 or (ip in _IPV4_COMPATIBLE and int(ip) > 1)):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return inner or ip


class _AllowRule(NamedTuple):
    """One destination listed by the operator: a network, or a name that may begin with "*.".

    `port` is None for all.
    """

    network: _Network | None
    name: str
    port: int | None

    def allows(self, host: str, port: int, address: str) -> bool:
        return self.port in (None, port) and (self.allows_name(host) or self.allows_address(address))

    def allows_name(self, host: str) -> bool:
        if self.network is not None:
            return False
        return host.endswith(self.name[1:]) if self.name.startswith("*.") else host == self.name

    def allows_address(self, address: str) -> bool:
        if self.network is None:
            return False
        ip = ipaddress.ip_address(address.partition("%")[0])
        return ip in self.network or _unwrap_ipv4(ip) in self.network


@functools.lru_cache(maxsize=256)
def _parse_rule(text: str) -> _AllowRule:
    if network := _parse_network(text):
        return _AllowRule(network, "", None)
    try:
        parts = urlsplit(f"//{text.lower()}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    # Nothing but host and port: urlsplit would also accept user info, a path or a query.
    is_plain = text.lower() in (host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}")
    if is_plain and (network := _parse_network(host)):
        return _AllowRule(network, "", port)
    if not is_plain or not _HOST_PATTERN.fullmatch(host):
        raise InvalidParameter(
            f"{text!r} is not a destination; write a host, host:port, *.domain, "
            "an address or a network (10.0.0.0/8)"
        )
    return _AllowRule(None, host, port)


def _parse_network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def parse_destinations(text: str) -> tuple[str, ...]:
    """Parse the value of --allow-origins, separated by commas.

    Raises argparse.ArgumentTypeError naming the item that is not a host, host:port, *.domain or network.
    """
    items = tuple(item.strip() for item in text.split(",") if item.strip())
    try:
        for item in items:
            _parse_rule(item)
    except InvalidParameter as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return items


def is_destination(text: str) -> bool:
    """Return whether `text` can be an item of the operator's list."""
    try:
        _parse_rule(text)
    except InvalidParameter:
        return False
    return True


def is_listed(allowed: Iterable[str], address: str) -> bool:
    """Return whether `address` is on the operator's list literally, without resolving names.

    It is "host" or "host:port"; without a port, a rule for port 80 or 443 matches too.
    """
    parts = urlsplit(f"//{address.lower()}")
    host = parts.hostname or ""
    numeric = next(iter(get_literal_addresses(host)), "")
    rules = (_parse_rule(item) for item in allowed)
    # Without a port the address is on the default port of http or https.
    ports = {None, parts.port} if parts.port else {None, 80, 443}
    return any(
        rule.port in ports and (rule.allows_name(host) or bool(numeric and rule.allows_address(numeric)))
        for rule in rules
    )


@dataclass(frozen=True)
class Destinations:
    """Policy of one origin: `allowed` as listed by the operator (see `parse_destinations`).

    `trusted` if an administrator named the first address.
    """

    allowed: tuple[str, ...] = ()
    trusted: bool = True

    def with_operator_host(self, host: str) -> Destinations:
        """Return a copy that also allows `host` ("host" or "host:port"), a hub chosen by the operator."""
        return (
            self if self.trusted or not is_destination(host) else replace(self, allowed=(*self.allowed, host))
        )

    def max_scope(self, origin_host: str | None, proxied: bool = False) -> AddressScope:
        """Return the nearest scope that is allowed without being listed.

        It applies to the first address if `origin_host` is None, else to redirects from that host. A redirect
        may not lead nearer to the node than its origin is: from a loopback mirror to the loopback, from a
        private network to private networks, and never to link-local addresses. `proxied` if a proxy connects
        to that host, whose name is not resolved here then. Raises socket.gaierror as `lookup_host` does.
        """
        if origin_host is None:
            return AddressScope.NOWHERE if self.trusted else AddressScope.PUBLIC
        if not self.trusted:
            return AddressScope.PUBLIC
        origin_scope = min(
            map(
                classify_address,
                get_literal_addresses(origin_host) if proxied else _lookup_origin(origin_host),
            ),
            default=AddressScope.PUBLIC,
        )
        return origin_scope if origin_scope <= AddressScope.LOOPBACK else AddressScope.PUBLIC

    def filter_allowed(
        self, host: str, port: int, addresses: Iterable[str], max_scope: AddressScope
    ) -> list[str]:
        """Return those of the `addresses` of `host` that may be connected to.

        Raises PermissionDenied if none may.
        """
        allowed, refused = self._split_allowed(host, port, addresses, max_scope)
        if not allowed:
            raise _not_allowed_error(host, port, refused)
        return allowed

    def check_all_allowed(
        self, host: str, port: int, addresses: Iterable[str], max_scope: AddressScope
    ) -> None:
        """Raise PermissionDenied unless every one of `addresses` may be connected to.

        For clients that choose among the addresses themselves.
        """
        allowed, refused = self._split_allowed(host, port, addresses, max_scope)
        if refused or not allowed:
            raise _not_allowed_error(host, port, refused)

    def _split_allowed(
        self, host: str, port: int, addresses: Iterable[str], max_scope: AddressScope
    ) -> tuple[list[str], list[str]]:
        name = _normalize(host)
        permitted, refused = list[str](), list[str]()
        for address in addresses:
            allowed = classify_address(address) <= max_scope or any(
                _parse_rule(item).allows(name, port, address) for item in self.allowed
            )
            (permitted if allowed else refused).append(address)
        return permitted, refused

    def check_literal_address(self, host: str, port: int, max_scope: AddressScope) -> None:
        """Check a host that is an address, in any spelling, or localhost, as `filter_allowed` does.

        Other names pass.
        """
        addresses = get_literal_addresses(host)
        if addresses:
            self.filter_allowed(host, port, addresses, max_scope)


def _not_allowed_error(host: str, port: int, refused: list[str]) -> PermissionDenied:
    host = _normalize(host)
    reason = (
        f"{host}:{port} is {refused[-1]}, {_SCOPE_DESCRIPTIONS[classify_address(refused[-1])]}"
        if refused
        else f"{host}:{port} has no address"
    )
    return PermissionDenied(
        f"{reason}, which requests may not go to; to allow it, start the plugin with --allow-origins {host}"
    )


def _normalize(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def get_literal_addresses(host: str) -> list[str]:
    """Return the address that `host` spells (also 127.1 and 0x7f000001), nothing for a name."""
    host = _normalize(host)
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1"]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        # getaddrinfo takes the classic spellings of IPv4 too: fewer parts, octal and hexadecimal numbers.
        return [socket.inet_ntoa(socket.inet_aton(host))]
    except (OSError, UnicodeError):
        return []


def lookup_host(host: str, port: int) -> list[str]:
    """Resolve `host` into numeric addresses, in the resolver's order.

    Raises socket.gaierror, or UnicodeError for an impossible name.
    """
    results = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in results))


@functools.lru_cache(maxsize=64)
def _lookup_origin(host: str) -> tuple[str, ...]:
    """Resolve the host of an origin, cached since every redirect asks for it.

    A stale answer is harmless: a redirect gains no scope that the origin itself did not have.
    """
    return tuple(lookup_host(host, 0))
