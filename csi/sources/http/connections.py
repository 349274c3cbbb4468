"""HTTP connections to origins: reuse, timeouts, the choice of client, readable errors."""

from __future__ import annotations

import functools
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, LocationParseError, NameResolutionError, ProtocolError, ProxyError

from csi.destinations.destinations import AddressScope, Destinations
from csi.errors import OriginTimedOut, OriginUnavailable, OriginUntrusted
from csi.sources.http.curl_fetch import CurlClient, CurlRequest, CurlTimeouts, SigningKey
from csi.sources.http.curl_response import CurlResponse
from csi.sources.http.environment import (
    find_ca_bundle,
    find_proxy,
    get_ssl_context,
    is_proxied,
    split_login,
)
from csi.sources.http.guarded_pools import connect_checked, connect_unchecked, guard_pools
from csi.sources.http.header_timeouts import HeaderTimeouts
from csi.sources.http.sites import Site, format_site, parse_site
from csi.sources.http.throughput import MIN_RATE, ThroughputBaseline
from csi.values import parse_decimal

# Seconds. READ_TIMEOUT is for one byte; headers may take HEADER_READ_TIMEOUTS times as long in total.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 20.0
HEADER_READ_TIMEOUTS = 2
IDLE_TIMEOUT = 30.0

# One for the whole process, since each has a thread.
_HEADER_TIMEOUTS = HeaderTimeouts()


class Connections:
    """Reused connections to any number of sites. Thread-safe; at most `max_idle` idle ones per site.

    `destinations` restricts where they may go, by the addresses that names resolve to (behind a proxy: only
    literal addresses). `baseline` is their usual throughput. After IDLE_TIMEOUT without a request no
    connection is reused: origins and firewalls drop idle ones silently.
    """

    def __init__(self, max_idle: int, destinations: Destinations | None = None) -> None:
        self._max_idle, self._destinations = max_idle, destinations or Destinations()
        self.baseline = ThroughputBaseline()
        self._ssl_context = get_ssl_context()
        self._managers: dict[tuple[str, AddressScope], urllib3.PoolManager] = {}
        self._verified_sites: set[Site] = set()
        self._curl_clients: dict[tuple[str, AddressScope], CurlClient] = {}
        self._routes: dict[tuple[Site, Site | None], tuple[str, AddressScope]] = {}
        self._thread_state = threading.local()
        self._lock = threading.Lock()
        self._last_used_at = time.monotonic()

    def get(
        self, url: str, headers: Mapping[str, str], origin_site: Site | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send one GET and return the response, body unread, redirects not followed.

        The caller reads the whole body or calls `discard`. `origin_site` is the site that redirected here, if
        any. Raises PermissionDenied if requests may not go there, and `unreachable_error` for a failure,
        which names the host and the problem, never the URL.
        """
        # `_connect` sets it: an error on a new connection is real, one on a kept connection may only mean it
        # was stale.
        self._thread_state.has_connected = False
        try:
            response = self._request(url, headers, origin_site)
        except ProtocolError as error:
            if self._thread_state.has_connected:
                raise unreachable_error(error, format_site(url)) from error
            # A connection kept from an earlier request may have been closed by the peer; retry on a new one.
            response = self._request_once(url, headers, origin_site)
        self._verified_sites.add(parse_site(url))
        return response

    def get_with_curl(
        self, url: str, headers: Mapping[str, str], origin_site: Site | None, max_bytes: int
    ) -> CurlResponse | None:
        """Send one GET whose body of at most `max_bytes` is returned completely.

        None if only `get` can send it.

        The first response of a TLS site is left to `get`: its certificate check is stricter (libcurl accepts
        names that are only in the subject), and it happens before a credential is sent.
        """
        try:
            client = self.find_curl_client(url, origin_site)
            return client.get(CurlRequest(url, parse_site(url)[1], headers, max_bytes)) if client else None
        except OSError as error:
            raise unreachable_error(error, format_site(url)) from error

    def find_curl_client(self, url: str, origin_site: Site | None) -> CurlClient | None:
        """Return the client for small responses from the site of `url`, None if only `get` can be used.

        `origin_site` is as in `get`; see `get_with_curl`.
        """
        target_site = parse_site(url)
        if target_site[0] == "https" and target_site not in self._verified_sites:
            return None
        proxy, max_scope = self._find_route(url, target_site, origin_site)
        return None if proxy else self._get_curl_client(proxy, max_scope)

    def get_signed(
        self, url: str, headers: Mapping[str, str], max_bytes: int, signing_key: SigningKey | None
    ) -> CurlResponse:
        """Send one GET signed with `signing_key` (None: anonymous), through a proxy too.

        The body is returned completely.

        It has at most `max_bytes`. As with `get_with_curl`, a stream checks the site's certificate first,
        with an unsigned request for `url` without its query.
        """
        target_site = parse_site(url)
        unsigned_url = url.partition("?")[0]
        if target_site[0] == "https" and target_site not in self._verified_sites:
            discard(self.get(unsigned_url, {}))
        try:
            response = self._get_curl_client(*self._find_route(url, target_site, None)).get(
                CurlRequest(url, target_site[1], headers, max_bytes), signing_key
            )
        except OSError as error:
            raise unreachable_error(error, format_site(url)) from error
        if response is None:
            # Nothing was sent. A streamed request raises the actual reason, unless the problem has passed by
            # now.
            discard(self.get(unsigned_url, {}))
            raise OriginUnavailable(f"{format_site(url)}: no connection was established; a retry may help")
        return response

    def _get_curl_client(self, proxy: str, max_scope: AddressScope) -> CurlClient:
        with self._lock:
            if (proxy, max_scope) not in self._curl_clients:

                def check_address(host: str, port: int, address: str) -> None:
                    if not proxy:
                        self._destinations.filter_allowed(host, port, [address], max_scope)

                timeouts = CurlTimeouts(CONNECT_TIMEOUT, READ_TIMEOUT, IDLE_TIMEOUT, MIN_RATE)
                self._curl_clients[proxy, max_scope] = CurlClient(
                    self._max_idle, check_address, find_ca_bundle()[1], timeouts, proxy
                )
            return self._curl_clients[proxy, max_scope]

    def _request(
        self, url: str, headers: Mapping[str, str], origin_site: Site | None
    ) -> urllib3.BaseHTTPResponse:
        try:
            manager = self._get_manager(url, origin_site)
            timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)
            return manager.urlopen(
                "GET",
                url,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=timeout,
            )
        except ProtocolError:
            # Handled by `get`: the only error that a stale connection causes.
            raise
        except (HTTPError, OSError, ValueError) as error:
            raise unreachable_error(error, format_site(url)) from error

    def _request_once(
        self, url: str, headers: Mapping[str, str], origin_site: Site | None
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._request(url, headers, origin_site)
        except ProtocolError as error:
            raise unreachable_error(error, format_site(url)) from error

    def _get_manager(self, url: str, origin_site: Site | None) -> urllib3.PoolManager:
        """Return the pool for the URL's proxy and allowed scope.

        Connections are never shared between scopes: one opened for a request that may reach more must not
        serve one that may reach less.
        """
        route = self._find_route(url, parse_site(url), origin_site)
        with self._lock:
            now = time.monotonic()
            if now - self._last_used_at > IDLE_TIMEOUT:
                # Closed here, since urllib3 has no limit on the age of idle connections.
                for manager in self._managers.values():
                    _close_idle(manager)
            self._last_used_at = now
            if route not in self._managers:
                self._managers[route] = self._new_manager(*route)
            return self._managers[route]

    def _find_route(self, url: str, target_site: Site, origin_site: Site | None) -> tuple[str, AddressScope]:
        """Return the proxy and the allowed scope, cached.

        Scanning the environment takes a quarter of the time of fetching a small file.
        """
        route = self._routes.get((target_site, origin_site))
        if route is None:
            redirected_from = origin_site if origin_site != target_site else None
            max_scope = self._destinations.max_scope(
                redirected_from and redirected_from[1],
                redirected_from is not None and is_proxied(redirected_from),
            )
            route = find_proxy(url), max_scope
            # The proxy resolves names, so only literal addresses can be checked.
            if route[0]:
                self._destinations.check_literal_address(*target_site[1:], max_scope)
            self._routes[target_site, origin_site] = route
        return route

    def _new_manager(self, proxy: str, max_scope: AddressScope) -> urllib3.PoolManager:
        connect = functools.partial(self._connect, None if proxy else max_scope)
        if not proxy:
            return guard_pools(
                urllib3.PoolManager(maxsize=self._max_idle, ssl_context=self._ssl_context),
                connect,
                self._limit_header_wait,
            )
        address, login = split_login(proxy)
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return guard_pools(
            urllib3.ProxyManager(
                address, maxsize=self._max_idle, ssl_context=self._ssl_context, proxy_headers=headers
            ),
            connect,
            self._limit_header_wait,
        )

    def _connect(self, max_scope: AddressScope | None, connection: HTTPConnection) -> socket.socket:
        """Open a socket.

        `max_scope` is None for a proxy, which may be anywhere since the environment names it.
        """
        self._thread_state.has_connected = True
        return (
            connect_unchecked(connection)
            if max_scope is None
            else connect_checked(connection, self._destinations, max_scope)
        )

    def _limit_header_wait(self, connection: socket.socket) -> AbstractContextManager[None]:
        return _HEADER_TIMEOUTS.enforce(connection, HEADER_READ_TIMEOUTS * READ_TIMEOUT)

    def close(self) -> None:
        """Close all idle connections; those in use are closed when they are released."""
        with self._lock:
            for manager in self._managers.values():
                _close_idle(manager)
            self._managers.clear()
            clients, self._curl_clients = self._curl_clients, {}
        for client in clients.values():
            client.close()


def _close_idle(manager: urllib3.PoolManager) -> None:
    """Close the idle connections of `manager` now.

    urllib3's `clear` leaves that to the garbage collector, and the traceback of an error can keep them alive
    for long.
    """
    for pool in filter(None, map(manager.pools.get, manager.pools.keys())):
        pool.close()
    manager.clear()


def discard(response: urllib3.BaseHTTPResponse | CurlResponse, max_drain_bytes: int = 1 << 16) -> None:
    """Release the connection of a response after reading a short rest of its body, else close it.

    The rest is short if it has at most `max_drain_bytes`.
    """
    length = parse_decimal(response.headers.get("Content-Length"))
    if length is not None and length <= max_drain_bytes:
        try:
            response.read(max_drain_bytes)
        except (HTTPError, OSError):
            response.close()
        response.release_conn()
    else:
        response.close()


def unreachable_error(error: BaseException, host: str, suffix: str = "") -> OriginUnavailable:
    """Create the error for a failed connection to `host` (host and port), followed by `suffix`.

    It is OriginUntrusted, OriginTimedOut or plain OriginUnavailable.
    """
    chain = list(_causes(error))
    error_type = OriginUnavailable
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in chain):
        error_type = OriginUntrusted
    elif any(map(_is_timeout, chain)):
        error_type = OriginTimedOut
    return error_type(f"{host}: {describe_error(error)}{suffix}")


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__.endswith(("TimeoutError", "Timeout"))


def describe_error(error: BaseException) -> str:
    """Describe what went wrong on the way to an origin, looking through to the cause, without any secret."""
    chain = list(_causes(error))
    proxy = (
        "the proxy named by the environment: "
        if any(isinstance(e, ProxyError) or type(e).__name__ == "ProxyError" for e in chain)
        else ""
    )
    return proxy + next(
        (text for text in map(_describe_known_error, reversed(chain)) if text), "the connection broke"
    )


def _describe_known_error(error: BaseException) -> str:
    if isinstance(error, (socket.gaierror, NameResolutionError)):
        return "its name cannot be resolved; check the host name and the node's DNS"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its TLS certificate is not trusted ({error.verify_message}); name its CA in REQUESTS_CA_BUNDLE"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, LocationParseError):
        return "its address cannot be read"
    if _is_timeout(error):
        return f"no answer (waited {CONNECT_TIMEOUT:.0f} s to connect, {READ_TIMEOUT:.0f} s for a byte)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
