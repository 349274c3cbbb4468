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

from csi.destinations.destinations import Destinations, Reach
from csi.errors import InvalidParameter, OriginTimedOut, OriginUnavailable, OriginUntrusted
from csi.sources.http.curl_fetch import Patience, Request, SigningKey, SmallAnswer, SmallAnswers
from csi.sources.http.guarded_pools import connect, guard, unchecked
from csi.sources.http.header_timeouts import Deadlines
from csi.sources.http.throughput import FLOOR, Tempo
from csi.values import whole_number

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 20.0
HEAD_SILENCES = 2
IDLE_SECONDS = 30.0
CA_KEYS = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_DEFAULT_PORTS = {"http": 80, "https": 443}

# Of the process, since each has a thread.
_DEADLINES = Deadlines()

Site = tuple[str, str, int]


class Connections:
    """Reused connections to any number of sites, for any number of threads; at most `limit` idle ones a site.

    `destinations` says where they may go, whatever names resolve to (behind a proxy: where addresses are written as such). `tempo` is what
    they usually give.
    After IDLE_SECONDS in which nothing was asked no connection is used again: origins and firewalls drop them without a word.
    """

    def __init__(self, limit: int, destinations: Destinations | None = None) -> None:
        self._limit, self._destinations = limit, destinations or Destinations()
        self.tempo = Tempo()
        self._trust = trust()
        self._managers: dict[tuple[str, Reach], urllib3.PoolManager] = {}
        self._trusted: set[Site] = set()
        self._small: dict[tuple[str, Reach], SmallAnswers] = {}
        self._routes: dict[tuple[Site, Site | None], tuple[str, Reach]] = {}
        self._asking = threading.local()
        self._guard = threading.Lock()
        self._used_at = time.monotonic()

    def get(self, url: str, headers: Mapping[str, str], home: Site | None = None) -> urllib3.BaseHTTPResponse:
        """The answer to one GET, its body unread, redirects not followed. The caller reads it whole or calls `drop`.

        `home` is the site that redirected here, where one did. Raises PermissionDenied for where requests may not go, and what
        `unreachable` makes of a failure: it names the host and what is wrong, never the URL.
        """
        self._asking.afresh = False
        try:
            answer = self._ask(url, headers, home)
        except ProtocolError as error:
            if self._asking.afresh:
                raise unreachable(error, shown_site(url)) from error
            # A connection kept from an earlier request may have been closed at the other end; a fresh one tells.
            answer = self._ask_once(url, headers, home)
        self._trusted.add(site(url))
        return answer

    def get_small(self, url: str, headers: Mapping[str, str], home: Site | None, wanted: int) -> SmallAnswer | None:
        """As `get`, with a body of at most `wanted` bytes that is here already; None where only `get` can ask, or can say what is wrong.

        The first answer of a site with TLS is left to `get`: its look at certificates is the stricter one (names in the subject alone count
        for libcurl), and it comes before a credential is sent.
        """
        try:
            answers = self.small_answers(url, home)
            return answers.get(Request(url, site(url)[1], headers, wanted)) if answers else None
        except OSError as error:
            raise unreachable(error, shown_site(url)) from error

    def small_answers(self, url: str, home: Site | None) -> SmallAnswers | None:
        """Who gives small answers of the site of `url`, for `home` as in `get`; None where only `get` can ask: see `get_small`."""
        there = site(url)
        if there[0] == "https" and there not in self._trusted:
            return None
        proxy, farthest = self._route(url, there, home)
        return None if proxy else self._small_answers(proxy, farthest)

    def get_signed(self, url: str, headers: Mapping[str, str], wanted: int, key: SigningKey | None) -> SmallAnswer:
        """As `get`, signed with `key` (None as anybody), through the proxy too, with a body of at most `wanted` bytes that is here already.

        As with `get_small` a stream looks at certificates first, which asks for `url` without its query and unsigned.
        """
        there = site(url)
        plain = url.partition("?")[0]
        if there[0] == "https" and there not in self._trusted:
            drop(self.get(plain, {}))
        try:
            answer = self._small_answers(*self._route(url, there, None)).get(Request(url, there[1], headers, wanted), key)
        except OSError as error:
            raise unreachable(error, shown_site(url)) from error
        if answer is None:
            # Nothing was sent; a stream says what is wrong.
            drop(self.get(plain, {}))
            raise OriginUnavailable(f"{shown_site(url)}: no connection came about; trying again may help")
        return answer

    def _small_answers(self, proxy: str, farthest: Reach) -> SmallAnswers:
        with self._guard:
            if (proxy, farthest) not in self._small:

                def check(host: str, port: int, address: str) -> None:
                    if not proxy:
                        self._destinations.check(host, port, [address], farthest)

                patience = Patience(CONNECT_SECONDS, SILENCE_SECONDS, IDLE_SECONDS, FLOOR)
                self._small[proxy, farthest] = SmallAnswers(self._limit, check, _bundle()[1], patience, proxy)
            return self._small[proxy, farthest]

    def _ask(self, url: str, headers: Mapping[str, str], home: Site | None) -> urllib3.BaseHTTPResponse:
        try:
            manager = self._manager(url, home)
            timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=SILENCE_SECONDS)
            return manager.urlopen(
                "GET", url, headers=headers, redirect=False, retries=False, preload_content=False, decode_content=False, timeout=timeout
            )
        except ProtocolError:
            raise
        except (HTTPError, OSError, ValueError) as error:
            raise unreachable(error, shown_site(url)) from error

    def _ask_once(self, url: str, headers: Mapping[str, str], home: Site | None) -> urllib3.BaseHTTPResponse:
        try:
            return self._ask(url, headers, home)
        except ProtocolError as error:
            raise unreachable(error, shown_site(url)) from error

    def _manager(self, url: str, home: Site | None) -> urllib3.PoolManager:
        """Connections that were made to what one address may reach are not used for another that may reach less."""
        key = self._route(url, site(url), home)
        with self._guard:
            now = time.monotonic()
            if now - self._used_at > IDLE_SECONDS:
                for manager in self._managers.values():
                    _let_go(manager)
            self._used_at = now
            if key not in self._managers:
                self._managers[key] = self._new_manager(*key)
            return self._managers[key]

    def _route(self, url: str, there: Site, home: Site | None) -> tuple[str, Reach]:
        """The proxy, and what may be reached. Remembered: to go through the environment takes a quarter of the time of a small file."""
        route = self._routes.get((there, home))
        if route is None:
            away = home if home != there else None
            farthest = self._destinations.farthest(away and away[1], away is not None and is_proxied(away))
            route = proxy_for(url), farthest
            if route[0]:
                self._destinations.check_literal(*there[1:], farthest)
            self._routes[there, home] = route
        return route

    def _new_manager(self, proxy: str, farthest: Reach) -> urllib3.PoolManager:
        connect = functools.partial(self._connect, None if proxy else farthest)
        if not proxy:
            return guard(urllib3.PoolManager(maxsize=self._limit, ssl_context=self._trust), connect, self._head)
        address, login = _split_login(proxy)
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return guard(urllib3.ProxyManager(address, maxsize=self._limit, ssl_context=self._trust, proxy_headers=headers), connect, self._head)

    def _connect(self, farthest: Reach | None, connection: HTTPConnection) -> socket.socket:
        """`farthest` None for a proxy, which may be anywhere: the environment names it."""
        self._asking.afresh = True
        return unchecked(connection) if farthest is None else connect(connection, self._destinations, farthest)

    def _head(self, connection: socket.socket) -> AbstractContextManager[None]:
        return _DEADLINES.limit(connection, HEAD_SILENCES * SILENCE_SECONDS)

    def close(self) -> None:
        """Close all idle connections; those in use close when they are given back."""
        with self._guard:
            for manager in self._managers.values():
                _let_go(manager)
            self._managers.clear()
            small, self._small = self._small, {}
        for answers in small.values():
            answers.close()


def _let_go(manager: urllib3.PoolManager) -> None:
    """Close its idle connections now: urllib3's `clear` leaves that to the garbage collector, and an error's traceback can keep them for long."""
    for pool in filter(None, map(manager.pools.get, manager.pools.keys())):
        pool.close()
    manager.clear()


def drop(response: urllib3.BaseHTTPResponse | SmallAnswer, spare: int = 1 << 16) -> None:
    """Be done with an answer: its connection is kept if at most `spare` bytes of body are left to read, else closed."""
    length = whole_number(response.headers.get("Content-Length"))
    if length is not None and length <= spare:
        try:
            response.read(spare)
        except (HTTPError, OSError):
            response.close()
        response.release_conn()
    else:
        response.close()


def trust() -> ssl.SSLContext:
    """Which certificates are trusted. Raises InvalidParameter when the environment names a bundle that cannot be read."""
    return _trust(*_bundle())


@functools.lru_cache(maxsize=1)
def _trust(name: str, path: str) -> ssl.SSLContext:
    """Kept: reading the certificates takes longer than asking a hub that is near."""
    if not name:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(capath=path) if os.path.isdir(path) else ssl.create_default_context(cafile=path)
    except OSError as error:
        message = f"{name} names {path!r}, which cannot be read as a bundle of CA certificates; set it right in the plugin's environment"
        raise InvalidParameter(message) from error


def proxy_for(url: str) -> str:
    """The proxy the environment names for `url`, empty for none."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]) or _in_networks(parts.hostname or "", proxies.get("no", "")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _in_networks(host: str, no_proxy: str) -> bool:
    """Whether `host` is an address of one of the networks in NO_PROXY: clusters write those, Python's own look knows names only."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in map(_network, no_proxy.split(",")) if network is not None)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return None


def is_proxied(there: Site) -> bool:
    """Whether a proxy asks this site."""
    return bool(proxy_for("{}://{}:{}/".format(*there)))


def site(url: str) -> Site:
    """Scheme, host and port of `url`: credentials given for one site must not reach another. Raises OriginUnavailable for no http(s) URL."""
    return _site(_without_path(url))


def _without_path(url: str) -> str:
    """`url` up to its path: of a million files of one site, one thing to remember."""
    end = url.find("/", len("https://"))
    return url if end < 0 else url[:end]


@functools.lru_cache(maxsize=256)
def _site(url: str) -> Site:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise OriginUnavailable("the origin answered with an address that is no http or https URL") from error
    return parts.scheme, (parts.hostname or "").lower(), port


def shown_site(url: str) -> str:
    """Host and port of `url` for a message: no user, no path, no query."""
    return urlsplit(_without_path(url)).netloc.rpartition("@")[2]


def unreachable(error: BaseException, where: str, more: str = "") -> OriginUnavailable:
    """A failure on the way to `where` (host and port): OriginUntrusted, OriginTimedOut or plain OriginUnavailable, in words, then `more`."""
    chain = list(_causes(error))
    kind = OriginUnavailable
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in chain):
        kind = OriginUntrusted
    elif any(map(_timed_out, chain)):
        kind = OriginTimedOut
    return kind(f"{where}: {in_words(error)}{more}")


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__.endswith(("TimeoutError", "Timeout"))


def in_words(error: BaseException) -> str:
    """What went wrong on the way to an origin, without anything that could hold a secret. Looks through to the cause."""
    chain = list(_causes(error))
    proxy = "the proxy that the environment names: " if any(isinstance(e, ProxyError) or type(e).__name__ == "ProxyError" for e in chain) else ""
    return proxy + next((words for words in map(_known, reversed(chain)) if words), "the connection broke")


def _known(error: BaseException) -> str:
    if isinstance(error, (socket.gaierror, NameResolutionError)):
        return "its name cannot be resolved; check the host name and the node's DNS"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted ({error.verify_message}); name its CA in REQUESTS_CA_BUNDLE"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, LocationParseError):
        return "its address cannot be read"
    if _timed_out(error):
        return f"no answer (waited {CONNECT_SECONDS:.0f} s to connect, {SILENCE_SECONDS:.0f} s for a byte)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _bundle() -> tuple[str, str]:
    """The variable that names the certificates to trust, and their file or folder; empty for the system's."""
    return next(((key, os.environ[key]) for key in CA_KEYS if os.environ.get(key)), ("", ""))


def _split_login(proxy: str) -> tuple[str, str]:
    """A proxy's URL without its login, and the login as "user:password" (empty for none)."""
    parts = urlsplit(proxy)
    login, _, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, host, "", "", "")), unquote(login)
