"""Calls to the Kubernetes API server, and the errors its statuses mean.

No result, error or log line holds the token.

Source: Kubernetes documentation, "Kubernetes API Concepts" (Status, server-side apply, watch).
"""

from __future__ import annotations

import email.utils
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, ProtocolError, SSLError

from csi import __version__
from csi.cluster.access import BearerToken, ClusterAccess
from csi.errors import (
    ClusterConflict,
    ClusterForbids,
    ClusterUnavailable,
    DataCacheError,
    FailedPrecondition,
    InvalidParameter,
    NotFound,
)

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
JSON = "application/json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_CONNECT_TIMEOUT = 3.0
# Each connection holds TLS buffers, and a storm of pods calls from a hundred threads. Watches use this pool
# too.
_MAX_CONNECTIONS, _POOL_TIMEOUT = 4, 10
# Nodes call while pods wait for their volumes: after one call found the server unreachable, those right
# behind it
# fail at once.
_UNREACHABLE_TTL = 2.0
_MAX_EVENT_BYTES = 8 * 2**20
# A watch is silent for minutes; TCP keepalive detects a server that is gone.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class ResourceExpired(ClusterUnavailable):
    """The resource version or continue token is too old for the server (410); listing again helps."""


class ApiServer:
    """Client of one API server. Thread-safe, with at most four connections."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self._token, self._lock = BearerToken(access), threading.Lock()
        self._prefix = urlsplit(access.server).path
        self._connections: urllib3.HTTPConnectionPool | None = None
        self._unreachable_until = float("-inf")

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout: float = 10.0,
    ) -> dict[str, Any]:
        """Make a call and return the JSON object of the answer.

        `body` is sent as JSON with the type `content_type`; reading waits at most `timeout` seconds.

        Raises NotFound (no such object), ClusterConflict, ResourceExpired, ClusterForbids, InvalidParameter
        (the schema rejects it), FailedPrecondition (the CRDs are missing), ClusterUnavailable.
        """
        if time.monotonic() < self._unreachable_until:
            raise ClusterUnavailable(self._unreachable_message("it was not a moment ago"))
        data = None if body is None else json.dumps(body).encode()
        answer = self._send_authorized(
            method,
            self._build_url(path, query),
            data,
            {"Accept": accept, "Content-Type": content_type},
            timeout,
        )
        return _parse_object(answer.status, answer.data, answer.headers.get("Retry-After", ""))

    def read_clock(self) -> float:
        """Return the server's time in seconds since 1970.

        Read from the Date header of an answer (RFC 9110, 6.6.1). Raises as `call`.
        """
        answer = self._send_authorized(
            "GET", self._build_url("/version", None), None, {"Accept": JSON}, _CONNECT_TIMEOUT
        )
        _parse_object(answer.status, answer.data, "")
        try:
            return email.utils.parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
        except ValueError:
            raise ClusterUnavailable("the Kubernetes API server sends no Date header") from None

    def stream(self, path: str, query: Mapping[str, str], timeout: float, accept: str = JSON) -> WatchStream:
        """Open a watch that lasts for at most `timeout` seconds. Raises as `call`."""
        answer = self._send_authorized(
            "GET", self._build_url(path, query), None, {"Accept": accept}, timeout, preload=False
        )
        if answer.status == 200:
            return WatchStream(self, answer)
        try:
            _parse_object(answer.status, answer.read(_MAX_EVENT_BYTES), answer.headers.get("Retry-After", ""))
        finally:
            _close_response(answer)
        raise ClusterUnavailable(self._unreachable_message(f"HTTP {answer.status} to a watch"))

    def _send_authorized(
        self,
        method: str,
        url: str,
        data: bytes | None,
        headers: dict[str, str],
        timeout: float,
        preload: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        # A 401 may mean that the token rotated since it was read: read its file and try once more.
        response = self._send(method, url, data, self._add_authorization(headers), timeout, preload)
        if response.status == 401 and self.access.token_file:
            _close_response(response)
            response = self._send(
                method, url, data, self._add_authorization(headers, force_refresh=True), timeout, preload
            )
        return response

    def _build_url(self, path: str, query: Mapping[str, str] | None) -> str:
        return self._prefix + path + (f"?{urlencode(query)}" if query else "")

    def _add_authorization(self, headers: dict[str, str], force_refresh: bool = False) -> dict[str, str]:
        token = self._token.get(force_refresh)
        agent = {"User-Agent": f"datacache-csi/{__version__}"}
        return {**headers, **agent, **({"Authorization": f"Bearer {token}"} if token else {})}

    def _send(
        self,
        method: str,
        url: str,
        data: bytes | None,
        headers: dict[str, str],
        read_timeout: float,
        preload: bool,
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=read_timeout)

        def send_once() -> urllib3.BaseHTTPResponse:
            return self._get_pool().urlopen(
                method,
                url,
                data,
                headers,
                retries=False,
                redirect=False,
                timeout=timeout,
                preload_content=preload,
                pool_timeout=_POOL_TIMEOUT,
            )

        try:
            # The server may have closed a kept connection in the meantime: try once more on a fresh one.
            with suppress(ProtocolError):
                return send_once()
            return send_once()
        except HTTPError as error:
            self.drop_connections()
            self._unreachable_until = time.monotonic() + _UNREACHABLE_TTL
            raise ClusterUnavailable(self._unreachable_message(_describe_error(error))) from None

    def _get_pool(self) -> urllib3.HTTPConnectionPool:
        with self._lock:
            if self._connections is None:
                server_name = {"server_hostname": self.access.tls_name} if self.access.tls_name else {}
                tls = (
                    {"ssl_context": self.access.build_tls_context(), **server_name}
                    if self.access.server.startswith("https://")
                    else {}
                )
                self._connections = urllib3.connection_from_url(
                    self.access.server,
                    maxsize=_MAX_CONNECTIONS,
                    block=True,
                    socket_options=_SOCKET_OPTIONS,
                    **tls,
                )
            return self._connections

    def drop_connections(self) -> None:
        """Open new connections from now on, with the CA read again, as it may have changed."""
        with self._lock:
            self._connections = None

    def _unreachable_message(self, why: str) -> str:
        return (
            f"the Kubernetes API server {self.access.server} cannot be reached ({why}); "
            "the call is retried, check the server and the network"
        )


class WatchStream:
    """Stream of a watch's events as JSON objects; any thread may `stop` it."""

    def __init__(self, server: ApiServer, response: urllib3.BaseHTTPResponse) -> None:
        self._server, self._response, self._is_stopped = server, response, False

    def __enter__(self) -> WatchStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _close_response(self._response)

    def stop(self) -> None:
        """Make the reader stop, as if the server had ended the watch."""
        self._is_stopped = True
        with suppress(ValueError, RuntimeError, OSError):
            self._response.shutdown()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the events. Raises ClusterUnavailable if the connection breaks."""
        partial_line = b""
        try:
            for part in self._response.stream(2**16):
                *lines, partial_line = (partial_line + part).split(b"\n")
                if len(partial_line) > _MAX_EVENT_BYTES:
                    raise ClusterUnavailable("the Kubernetes API server sent an event of more than 8 MiB")
                yield from (json.loads(line) for line in lines if line)
        except (HTTPError, OSError, ValueError) as error:
            if not self._is_stopped:
                raise ClusterUnavailable(
                    f"the watch at the Kubernetes API server was interrupted ({_describe_error(error)})"
                ) from None


def _close_response(response: urllib3.BaseHTTPResponse) -> None:
    # Without release_conn the pool would count the connection as in use for good.
    response.close()
    response.release_conn()


def api_path(*parts: str) -> str:
    """Join parts into a path of the API, with each part percent-encoded."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _parse_object(status: int, data: bytes, retry_after: str) -> dict[str, Any]:
    try:
        obj = json.loads(data)
    except ValueError:
        obj = None
    if status < 300 and isinstance(obj, dict):
        return obj
    raise error_from_status(status, obj if isinstance(obj, dict) else {}, retry_after)


def error_from_status(code: int, status: Mapping[str, Any], retry_after: str = "") -> DataCacheError:
    """Return the error that a Kubernetes Status (meta/v1) means; `code` is the HTTP status."""
    message, details = str(status.get("message", ""))[:2000], status.get("details") or {}
    # A 404 without the name of an object means that the kind itself is unknown.
    if (code == 404 and not details.get("name")) or "field not declared in schema" in message:
        reason = message if details or code != 404 else "it does not know this kind of object"
        return FailedPrecondition(
            f"the CRDs of the Kubernetes API server are missing or older than this driver ({reason}); "
            "apply deploy/crds and try again"
        )
    if code in (401, 403):
        return ClusterForbids(
            f"the Kubernetes API server denies this: {message or 'it does not know the caller'}; "
            "give the service account this permission (RBAC)"
        )
    if code in (400, 413, 422):
        return InvalidParameter(f"the Kubernetes API server rejects the object: {message or f'HTTP {code}'}")
    kinds: dict[int, type[DataCacheError]] = {404: NotFound, 409: ClusterConflict, 410: ResourceExpired}
    if code in kinds:
        return kinds[code](f"the Kubernetes API server answers: {message}")
    wait = f", and asks to wait for {retry_after} s" if retry_after else ""
    return ClusterUnavailable(
        f"the Kubernetes API server answers HTTP {code} ({message or 'no reason given'}){wait}; "
        "the call is retried"
    )


def _describe_error(error: Exception) -> str:
    """Describe a failure without the text of a foreign exception, which may hold secrets."""
    if isinstance(error, SSLError):
        return "its certificate is not trusted, or TLS failed"
    inner = getattr(error, "__cause__", None) or error
    return getattr(inner, "strerror", None) or type(error).__name__
