"""HTTP connections to origins: proxies and trust as the environment says, limits on waiting, failures in words.

The environment is the one curl and the hub clients read: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, and for trust
REQUESTS_CA_BUNDLE, SSL_CERT_FILE or CURL_CA_BUNDLE (the first that is set).
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, LocationParseError, NameResolutionError, ProtocolError, ProxyError

from csi.destinations.destinations import AddressScope, Destinations
from csi.errors import InvalidParameter, OriginTimedOut, OriginUnavailable, OriginUntrusted
from csi.sources.http.curl_fetch import CurlClient, CurlRequest, CurlResponse, CurlTimeouts, SigningKey
from csi.sources.http.guarded_pools import connect_checked, connect_unchecked, guard_pools
from csi.sources.http.header_timeouts import HeaderTimeouts
from csi.sources.http.throughput import MIN_RATE, ThroughputBaseline
from csi.values import parse_decimal

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 20.0
HEADER_READ_TIMEOUTS = 2
IDLE_TIMEOUT = 30.0
CA_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_DEFAULT_PORTS = {"http": 80, "https": 443}

# Of the process, since each has a thread.
_HEADER_TIMEOUTS = HeaderTimeouts()

Site = tuple[str, str, int]


class Connections:
    """Reused connections to any number of sites, for any number of threads; at most `limit` idle ones a site.

    `destinations` says where they may go, whatever names resolve to (behind a proxy: where addresses are written as such). `baseline` is what
    they usually give.
    After IDLE_SECONDS in which nothing was asked no connection is used again: origins and firewalls drop them without a word.
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
        """The answer to one GET, its body unread, redirects not followed. The caller reads it whole or calls `discard`.

        `origin_site` is the site that redirected here, where one did. Raises PermissionDenied for where requests may not go, and what
        `unreachable_error` makes of a failure: it names the host and what is wrong, never the URL.
        """
        self._thread_state.afresh = False
        try:
            response = self._request(url, headers, origin_site)
        except ProtocolError as error:
            if self._thread_state.afresh:
                raise unreachable_error(error, format_site(url)) from error
            # A connection kept from an earlier request may have been closed at the other end; a fresh one tells.
            response = self._request_once(url, headers, origin_site)
        self._verified_sites.add(parse_site(url))
        return response

    def get_with_curl(
        self, url: str, headers: Mapping[str, str], origin_site: Site | None, max_bytes: int
    ) -> CurlResponse | None:
        """As `get`, with a body of at most `max_bytes` bytes that is here already; None where only `get` can ask, or can say what is wrong.

        The first answer of a site with TLS is left to `get`: its look at certificates is the stricter one (names in the subject alone count
        for libcurl), and it comes before a credential is sent.
        """
        try:
            client = self.find_curl_client(url, origin_site)
            return client.get(CurlRequest(url, parse_site(url)[1], headers, max_bytes)) if client else None
        except OSError as error:
            raise unreachable_error(error, format_site(url)) from error

    def find_curl_client(self, url: str, origin_site: Site | None) -> CurlClient | None:
        """Who gives small answers of the site of `url`, for `origin_site` as in `get`; None where only `get` can ask: see `get_with_curl`."""
        target_site = parse_site(url)
        if target_site[0] == "https" and target_site not in self._verified_sites:
            return None
        proxy, max_scope = self._find_route(url, target_site, origin_site)
        return None if proxy else self._get_curl_client(proxy, max_scope)

    def get_signed(
        self, url: str, headers: Mapping[str, str], max_bytes: int, signing_key: SigningKey | None
    ) -> CurlResponse:
        """As `get`, signed with `signing_key` (None as anybody), through the proxy too, with a body of at most `max_bytes` bytes that is here already.

        As with `get_with_curl` a stream looks at certificates first, which asks for `url` without its query and unsigned.
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
            # Nothing was sent; a stream says what is wrong.
            discard(self.get(unsigned_url, {}))
            raise OriginUnavailable(f"{format_site(url)}: no connection came about; trying again may help")
        return response

    def _get_curl_client(self, proxy: str, max_scope: AddressScope) -> CurlClient:
        with self._lock:
            if (proxy, max_scope) not in self._curl_clients:

                def check_address(host: str, port: int, address: str) -> None:
                    if not proxy:
                        self._destinations.filter_allowed(host, port, [address], max_scope)

                timeouts = CurlTimeouts(CONNECT_TIMEOUT, READ_TIMEOUT, IDLE_TIMEOUT, MIN_RATE)
                self._curl_clients[proxy, max_scope] = CurlClient(
                    self._max_idle, check_address, _find_ca_bundle()[1], timeouts, proxy
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
        """Connections that were made to what one address may reach are not used for another that may reach less."""
        route = self._find_route(url, parse_site(url), origin_site)
        with self._lock:
            now = time.monotonic()
            if now - self._last_used_at > IDLE_TIMEOUT:
                for manager in self._managers.values():
                    _close_idle(manager)
            self._last_used_at = now
            if route not in self._managers:
                self._managers[route] = self._new_manager(*route)
            return self._managers[route]

    def _find_route(self, url: str, target_site: Site, origin_site: Site | None) -> tuple[str, AddressScope]:
        """The proxy, and what may be reached. Remembered: to go through the environment takes a quarter of the time of a small file."""
        route = self._routes.get((target_site, origin_site))
        if route is None:
            redirected_from = origin_site if origin_site != target_site else None
            max_scope = self._destinations.max_scope(
                redirected_from and redirected_from[1],
                redirected_from is not None and is_proxied(redirected_from),
            )
            route = find_proxy(url), max_scope
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
        address, login = _split_login(proxy)
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return guard_pools(
            urllib3.ProxyManager(
                address, maxsize=self._max_idle, ssl_context=self._ssl_context, proxy_headers=headers
            ),
            connect,
            self._limit_header_wait,
        )

    def _connect(self, max_scope: AddressScope | None, connection: HTTPConnection) -> socket.socket:
        """`max_scope` None for a proxy, which may be anywhere: the environment names it."""
        self._thread_state.afresh = True
        return (
            connect_unchecked(connection)
            if max_scope is None
            else connect_checked(connection, self._destinations, max_scope)
        )

    def _limit_header_wait(self, connection: socket.socket) -> AbstractContextManager[None]:
        return _HEADER_TIMEOUTS.enforce(connection, HEADER_READ_TIMEOUTS * READ_TIMEOUT)

    def close(self) -> None:
        """Close all idle connections; those in use close when they are given back."""
        with self._lock:
            for manager in self._managers.values():
                _close_idle(manager)
            self._managers.clear()
            clients, self._curl_clients = self._curl_clients, {}
        for client in clients.values():
            client.close()


def _close_idle(manager: urllib3.PoolManager) -> None:
    """Close its idle connections now: urllib3's `clear` leaves that to the garbage collector, and an error's traceback can keep them for long."""
    for pool in filter(None, map(manager.pools.get, manager.pools.keys())):
        pool.close()
    manager.clear()


def discard(response: urllib3.BaseHTTPResponse | CurlResponse, max_drain_bytes: int = 1 << 16) -> None:
    """Be done with an answer: its connection is kept if at most `max_drain_bytes` bytes of body are left to read, else closed."""
    length = parse_decimal(response.headers.get("Content-Length"))
    if length is not None and length <= max_drain_bytes:
        try:
            response.read(max_drain_bytes)
        except (HTTPError, OSError):
            response.close()
        response.release_conn()
    else:
        response.close()


def get_ssl_context() -> ssl.SSLContext:
    """Which certificates are trusted. Raises InvalidParameter when the environment names a bundle that cannot be read."""
    return _load_ssl_context(*_find_ca_bundle())


@functools.lru_cache(maxsize=1)
def _load_ssl_context(variable: str, path: str) -> ssl.SSLContext:
    """Kept: reading the certificates takes longer than asking a hub that is near."""
    if not variable:
        return ssl.create_default_context()
    try:
        return (
            ssl.create_default_context(capath=path)
            if os.path.isdir(path)
            else ssl.create_default_context(cafile=path)
        )
    except OSError as error:
        message = f"{variable} names {path!r}, which cannot be read as a bundle of CA certificates; set it right in the plugin's environment"
        raise InvalidParameter(message) from error


def find_proxy(url: str) -> str:
    """The proxy the environment names for `url`, empty for none."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if (
        not proxy
        or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2])
        or _is_in_networks(parts.hostname or "", proxies.get("no", ""))
    ):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_in_networks(host: str, no_proxy: str) -> bool:
    """Whether `host` is an address of one of the networks in NO_PROXY: clusters write those, Python's own look knows names only."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(
        address in network for network in map(_parse_network, no_proxy.split(",")) if network is not None
    )


def _parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return None


def is_proxied(target_site: Site) -> bool:
    """Whether a proxy asks this site."""
    return bool(find_proxy("{}://{}:{}/".format(*target_site)))


def parse_site(url: str) -> Site:
    """Scheme, host and port of `url`: credentials given for one site must not reach another. Raises OriginUnavailable for no http(s) URL."""
    return _parse_site(_strip_path(url))


def _strip_path(url: str) -> str:
    """`url` up to its path: of a million files of one site, one thing to remember."""
    end = url.find("/", len("https://"))
    return url if end < 0 else url[:end]


@functools.lru_cache(maxsize=256)
def _parse_site(url: str) -> Site:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise OriginUnavailable("the origin answered with an address that is no http or https URL") from error
    return parts.scheme, (parts.hostname or "").lower(), port


def format_site(url: str) -> str:
    """Host and port of `url` for a message: no user, no path, no query."""
    return urlsplit(_strip_path(url)).netloc.rpartition("@")[2]


def unreachable_error(error: BaseException, host: str, suffix: str = "") -> OriginUnavailable:
    """A failure on the way to `host` (host and port): OriginUntrusted, OriginTimedOut or plain OriginUnavailable, in words, then `suffix`."""
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
    """What went wrong on the way to an origin, without anything that could hold a secret. Looks through to the cause."""
    chain = list(_causes(error))
    proxy = (
        "the proxy that the environment names: "
        if any(isinstance(e, ProxyError) or type(e).__name__ == "ProxyError" for e in chain)
        else ""
    )
    return proxy + next(
        (words for words in map(_describe_known_error, reversed(chain)) if words), "the connection broke"
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


def _find_ca_bundle() -> tuple[str, str]:
    """The variable that names the certificates to trust, and their file or folder; empty for the system's."""
    return next(((key, os.environ[key]) for key in CA_BUNDLE_VARIABLES if os.environ.get(key)), ("", ""))


def _split_login(proxy: str) -> tuple[str, str]:
    """A proxy's URL without its login, and the login as "user:password" (empty for none)."""
    parts = urlsplit(proxy)
    login, _, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, host, "", "", "")), unquote(login)
