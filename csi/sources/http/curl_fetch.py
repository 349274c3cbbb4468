"""Small HTTP responses fetched completely by libcurl, in a fifth of the time that setting up a stream takes.

Destinations are checked as for streams: each address at the moment of connecting. Redirects are not followed,
no proxy is used except the given one, and the user's curl configuration is not read.
"""

from __future__ import annotations

import errno
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pycurl

from csi.errors import PermissionDenied
from csi.manifest.reader import SMALL_FILE
from csi.sources.http.curl_response import CurlResponse, ResponseHeaders

MAX_BODY_BYTES = SMALL_FILE
"""Size of the largest file requested in this way."""
# Seconds: how soon a stop, or a permit for another request, is noticed.
_SELECT_TIMEOUT = 0.1
_CURL_POLL_INTERVAL = 0.005
# Bytes of an error body that are read: leaving it unread would cost the connection.
_MAX_ERROR_BODY_BYTES = 1 << 16
# Errors before anything was sent. The stream that is tried instead reports the reason, and the origin gets no
# second request.
_NOT_SENT_ERRORS = (
    pycurl.E_URL_MALFORMAT,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_RESOLVE_PROXY,
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_SSL_CACERT_BADFILE,
)
# NOSIGNAL: libcurl's timeouts must not use SIGALRM in a threaded process. NOPROXY "": the environment is
# evaluated by `connections`, not by libcurl. HTTP/1.1: many origins limit each connection, and HTTP/2 would
# share a single one.
_TRANSPORT_OPTIONS = (
    (pycurl.NOSIGNAL, 1),
    (pycurl.NOPROXY, ""),
    (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
    (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
    (pycurl.SSL_OPTIONS, pycurl.SSLOPT_NO_PARTIALCHAIN),
    (pycurl.BUFFERSIZE, 1 << 18),
    (pycurl.USERAGENT, "datacache-csi"),
)
# Without "@": curl would take what is before it for a login.
_SAFE_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]!$&'()*+,;=%]+")
# An https proxy is verified against the same CA bundle as origins.
_PROXY_CA_OPTIONS = {pycurl.CAINFO: pycurl.PROXY_CAINFO, pycurl.CAPATH: pycurl.PROXY_CAPATH}
_EARLY_END_ERRORS = (pycurl.E_PARTIAL_FILE, pycurl.E_GOT_NOTHING)


@dataclass(frozen=True)
class CurlTimeouts:
    """Timeouts in seconds: to connect, to stall, and to keep an idle connection.

    A transfer stalls if it stays below `min_rate` bytes per second for `stall` seconds (curl counts whole
    ones).
    """

    connect: float
    stall: float
    idle: float
    min_rate: float


@dataclass(frozen=True)
class SigningKey:
    """Key for signing requests to an object store (AWS Signature Version 4, service "s3")."""

    id: str
    secret: str = field(repr=False)
    region: str


class CurlRequest(NamedTuple):
    """One GET of `url`, on the site of `host`, for a body of at most `max_body_bytes` bytes."""

    url: str
    host: str
    headers: Mapping[str, str]
    max_body_bytes: int


FetchOutcome = CurlResponse | OSError | None
"""A response, the error that prevented a complete one, or None if nothing was sent."""


class CurlClient:
    """HTTP client with its own connections. Thread-safe; at most `max_idle` connections are kept.

    `check_address(host, port, address)` raises PermissionDenied if the numeric address must not be connected
    to. `ca_bundle` is the file or folder of trusted CA certificates ("" for the system's), `proxy` the URL of
    the proxy ("" for none).
    """

    def __init__(
        self,
        max_idle: int,
        check_address: Callable[[str, int, str], object],
        ca_bundle: str,
        timeouts: CurlTimeouts,
        proxy: str = "",
    ) -> None:
        self._max_idle, self._check_address = max_idle, check_address
        ca_options = _ca_options(ca_bundle)
        self._options = [
            *_TRANSPORT_OPTIONS,
            *_timeout_options(timeouts),
            *ca_options,
            (pycurl.PROXY, proxy),
            *((_PROXY_CA_OPTIONS[option], path) for option, path in ca_options),
        ]
        self._idle_handles: list[_CurlHandle] = []
        self._idle_multi: _CurlMulti | None = None
        self._lock = threading.Lock()

    def get(self, request: CurlRequest, signing_key: SigningKey | None = None) -> CurlResponse | None:
        """Return the response, None if nothing could be sent.

        With `signing_key` the request is signed, including all its headers. Raises TimeoutError and other
        OSErrors if the response was not complete.
        """
        if not can_send_verbatim(request):
            return None
        with self._borrow_handle() as handle:
            outcome = handle.fetch(request, signing_key)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def get_many(
        self, requests: Iterator[CurlRequest], can_start: Callable[[int], bool]
    ) -> Iterator[tuple[int, FetchOutcome]]:
        """Yield the number and the outcome of each request as it finishes, counting from 0.

        All requests must satisfy `can_send_verbatim`. The next one is taken from `requests` if `can_start`,
        called with the number in flight, allows it. A caller that wants no more ends `requests` and still
        gets those in flight. Of several concurrent callers, one keeps its connections.
        """
        with self._lock:
            # Taken out while in use, as a multi handle must not be used by two threads.
            multi, self._idle_multi = self._idle_multi, None
        multi = multi or _CurlMulti(lambda: _CurlHandle(self._check_address, self._options))
        try:
            yield from multi.fetch_all(requests, can_start)
        finally:
            with self._lock:
                should_keep = self._max_idle > 0 and self._idle_multi is None
                if should_keep:
                    self._idle_multi = multi
            if not should_keep:
                multi.close()

    @contextmanager
    def _borrow_handle(self) -> Iterator[_CurlHandle]:
        with self._lock:
            handle = self._idle_handles.pop() if self._idle_handles else None
        handle = handle or _CurlHandle(self._check_address, self._options)
        try:
            yield handle
        finally:
            with self._lock:
                should_keep = len(self._idle_handles) < self._max_idle
                if should_keep:
                    self._idle_handles.append(handle)
            if not should_keep:
                handle.close()

    def close(self) -> None:
        """Close the idle connections and keep no others."""
        with self._lock:
            handles: list[_CurlHandle | _CurlMulti] = [*self._idle_handles, *filter(None, [self._idle_multi])]
            self._idle_handles, self._idle_multi, self._max_idle = [], None, 0
        for handle in handles:
            handle.close()


class _CurlHandle:
    """A handle with its own connection, or one of those of a `_CurlMulti`. For one thread at a time."""

    def __init__(
        self, check_address: Callable[[str, int, str], object], options: Sequence[tuple[int, Any]]
    ) -> None:
        self._check_address, self._host, self._max_body_bytes = check_address, "", 0
        self._body, self._header_lines = bytearray(), list[bytes]()
        self.curl, self._options = pycurl.Curl(), options
        self._reset()

    def _reset(self) -> None:
        """Restore all options, keeping the connection."""
        self.curl.reset()
        for option, value in self._options:
            self.curl.setopt(option, value)
        self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_body)

    def fetch(self, request: CurlRequest, signing_key: SigningKey | None) -> FetchOutcome:
        if signing_key is None:
            return self._perform(request)
        try:
            self._sign(signing_key)
            return self._perform(request)
        finally:
            # libcurl cannot unset a login, which must not reach the next request.
            self._reset()

    def _sign(self, signing_key: SigningKey) -> None:
        options = (
            (pycurl.AWS_SIGV4, f"aws:amz:{signing_key.region}:s3"),
            (pycurl.USERNAME, signing_key.id),
            (pycurl.PASSWORD, signing_key.secret),
        )
        for option, value in options:
            self.curl.setopt(option, value)

    def _perform(self, request: CurlRequest) -> FetchOutcome:
        self.prepare(request)
        try:
            self.curl.perform()
        except pycurl.error as error:
            return self.build_outcome(int(error.args[0]), str(error.args[-1]))
        return self.build_outcome()

    def prepare(self, request: CurlRequest) -> None:
        """Set the options for a request."""
        self._host, self._max_body_bytes, self._body = request.host, request.max_body_bytes, bytearray()
        self.curl.setopt(pycurl.URL, request.url)
        self.curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in request.headers.items()])

    def build_outcome(self, code: int = pycurl.E_OK, message: str = "") -> FetchOutcome:
        """Translate libcurl's result (error code and message) into an outcome."""
        if code in _NOT_SENT_ERRORS:
            return None
        if code not in (pycurl.E_OK, pycurl.E_WRITE_ERROR):
            return _error_for_code(code, message)
        # An idle handle must not keep the body alive.
        body, self._body = self._body, bytearray()
        return CurlResponse(
            self.curl.getinfo(pycurl.RESPONSE_CODE), ResponseHeaders(self._header_lines), memoryview(body)
        )

    def close(self) -> None:
        self.curl.close()

    def _open_socket(self, purpose: int, address: Any) -> Any:
        try:
            self._check_address(self._host, address.addr[1], str(address.addr[0]))
            return socket.socket(address.family, address.socktype, address.protocol)
        except (PermissionDenied, OSError):
            return pycurl.SOCKET_BAD

    def _on_header(self, line: bytes) -> None:
        if line.startswith(b"HTTP/"):
            # A new status line: interim responses (100 Continue) may come first.
            self._header_lines = []
        self._header_lines.append(line)

    def _on_body(self, data: bytes) -> int:
        max_bytes = (
            self._max_body_bytes
            if self._header_lines[0].split(None, 2)[1:2] in ([b"200"], [b"206"])
            else max(self._max_body_bytes, _MAX_ERROR_BODY_BYTES)
        )
        space = max_bytes + 1 - len(self._body)
        self._body += data[:space]
        # libcurl aborts the transfer (E_WRITE_ERROR) if less than everything is consumed.
        return len(data) if len(data) <= space else 0


class _CurlMulti:
    """Handles that share one connection pool. For one thread at a time."""

    def __init__(self, new_handle: Callable[[], _CurlHandle]) -> None:
        self._new_handle, self._multi = new_handle, pycurl.CurlMulti()
        self._idle: list[_CurlHandle] = []
        self._active: dict[pycurl.Curl, tuple[int, _CurlHandle]] = {}

    def fetch_all(
        self, requests: Iterator[CurlRequest], can_start: Callable[[int], bool]
    ) -> Iterator[tuple[int, FetchOutcome]]:
        numbered = enumerate(requests)
        try:
            while self._start(numbered, can_start) or self._active:
                self._multi.perform()
                yield from self._iter_finished()
        finally:
            for curl in list(self._active):
                self._release(curl)

    def _start(self, numbered: Iterator[tuple[int, CurlRequest]], can_start: Callable[[int], bool]) -> bool:
        """Start requests as long as allowed; return whether more may follow later."""
        while can_start(len(self._active)):
            number, request = next(numbered, (0, None))
            if request is None:
                return False
            handle = self._idle.pop() if self._idle else self._new_handle()
            handle.prepare(request)
            self._active[handle.curl] = number, handle
            self._multi.add_handle(handle.curl)
        return True

    def _iter_finished(self) -> Iterator[tuple[int, FetchOutcome]]:
        _, succeeded, failed = self._multi.info_read(max(1, len(self._active)))
        for curl, code, message in (*((curl, pycurl.E_OK, "") for curl in succeeded), *failed):
            number, handle = self._release(curl)
            yield number, handle.build_outcome(code, message)
        if not (succeeded or failed) and self._multi.select(_SELECT_TIMEOUT) < 0:
            # No descriptor to wait for: a name is being resolved, or no request may start now.
            time.sleep(_CURL_POLL_INTERVAL if self._active else _SELECT_TIMEOUT)

    def _release(self, curl: pycurl.Curl) -> tuple[int, _CurlHandle]:
        number, handle = self._active.pop(curl)
        self._multi.remove_handle(curl)
        self._idle.append(handle)
        return number, handle

    def close(self) -> None:
        for handle in self._idle:
            handle.close()
        self._multi.close()


def can_send_verbatim(request: CurlRequest) -> bool:
    """Return whether curl sends URL and headers exactly as they are."""
    return _SAFE_URL.fullmatch(request.url) is not None and all(
        text.isascii() and text.isprintable() and text for text in request.headers.values()
    )


def _error_for_code(code: int, message: str) -> OSError:
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return TimeoutError("no answer in time")
    if code in (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CONNECT_ERROR):
        return _tls_error(
            message.rpartition(":")[2].strip(), untrusted=code == pycurl.E_PEER_FAILED_VERIFICATION
        )
    if code in _EARLY_END_ERRORS:
        return ConnectionError(errno.ECONNRESET, "the connection ended early")
    if code in (pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR):
        return ConnectionError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return ConnectionError("invalid response")


def _tls_error(message: str, untrusted: bool) -> ssl.SSLError:
    """Create the error that Python's own TLS would raise."""
    if not untrusted:
        error = ssl.SSLError()
        error.reason = message
        return error
    untrusted_error = ssl.SSLCertVerificationError()
    untrusted_error.verify_message = message
    return untrusted_error


def _timeout_options(timeouts: CurlTimeouts) -> list[tuple[int, Any]]:
    return [
        (pycurl.CONNECTTIMEOUT_MS, int(timeouts.connect * 1000)),
        (pycurl.LOW_SPEED_LIMIT, int(timeouts.min_rate)),
        (pycurl.LOW_SPEED_TIME, math.ceil(timeouts.stall)),
        (pycurl.MAXAGE_CONN, int(timeouts.idle)),
    ]


def _ca_options(ca_bundle: str) -> list[tuple[int, Any]]:
    if ca_bundle:
        return (
            [(pycurl.CAINFO, None), (pycurl.CAPATH, ca_bundle)]
            if Path(ca_bundle).is_dir()
            else [(pycurl.CAINFO, ca_bundle)]
        )
    system = ssl.get_default_verify_paths()
    return [
        (option, path)
        for option, path in ((pycurl.CAINFO, system.cafile), (pycurl.CAPATH, system.capath))
        if path
    ]
