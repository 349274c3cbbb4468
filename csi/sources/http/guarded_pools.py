"""urllib3 pools whose connections go only to checked addresses.

The address that was checked is the one connected to. With a separate check, the name could resolve to another
address in urllib3's own lookup (DNS rebinding). Certificates and SNI are still those of the name.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

from csi.destinations.destinations import AddressScope, Destinations, lookup_host

ConnectFunction = Callable[[HTTPConnection], socket.socket]
HeaderLimit = Callable[[socket.socket], AbstractContextManager[None]]


def guard_pools(
    manager: urllib3.PoolManager, connect: ConnectFunction, limit_header_wait: HeaderLimit
) -> urllib3.PoolManager:
    """Make all connections of `manager` with `connect`, and limit the wait for headers; returns `manager`."""

    # urllib3 has no hook for either, only overridable methods of the connection classes.
    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self)

        def getresponse(self) -> Any:
            with limit_header_wait(self.sock):
                return super().getresponse()

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return connect(self)

        def getresponse(self) -> Any:
            with limit_header_wait(self.sock):
                return super().getresponse()

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def connect_unchecked(connection: HTTPConnection) -> socket.socket:
    """Open a socket to a proxy as urllib3 does."""
    return HTTPConnection._new_conn(connection)


def connect_checked(
    connection: HTTPConnection, destinations: Destinations, max_scope: AddressScope
) -> socket.socket:
    """Open a socket to the first reachable one of the host's allowed addresses.

    Raises PermissionDenied if none is allowed, else the errors of urllib3's own connections.
    """
    try:
        addresses = lookup_host(connection.host, connection.port)
    except socket.gaierror as error:
        raise NameResolutionError(connection.host, connection, error) from error
    except UnicodeError as error:
        raise NameResolutionError(
            connection.host, connection, socket.gaierror(socket.EAI_NONAME, "no host name")
        ) from error
    allowed = destinations.filter_allowed(connection.host, connection.port, addresses, max_scope)
    return _connect_first_reachable(connection, allowed)


def _connect_first_reachable(connection: HTTPConnection, addresses: list[str]) -> socket.socket:
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return create_connection(
                (address, connection.port),
                connection.timeout,
                connection.source_address,
                connection.socket_options,
            )
        except OSError as error:
            failure = error
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, "the connection timed out") from failure
    raise NewConnectionError(connection, "no connection") from failure
