"""Calls to the Kubernetes API server, and what its refusals mean. No answer, no refusal and no log line holds the token.

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
from csi.cluster.access import Access, Token
from csi.errors import ClusterConflict, ClusterForbids, ClusterUnavailable, DataCacheError, FailedPrecondition, InvalidParameter, NotFound

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_CONNECT_SECONDS = 3.0
# Each holds the buffers of TLS, and a storm of pods asks from a hundred threads; watches take theirs from these, too.
_CONNECTIONS, _TURN_SECONDS = 4, 10
# Nodes call while pods wait for their volumes: one call finds out that nobody answers, those right behind it do not try.
_DOWN_SECONDS = 2.0
_LONGEST_LINE = 8 * 2**20
# A watch is silent for minutes; the kernel finds out whether the server is still there.
_SOCKET = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class Expired(ClusterUnavailable):
    """The resource version or continue token is too old for the server (410); a new list helps."""


class ApiServer:
    """One API server. Thread-safe; there are at most four connections."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._token, self._guard = Token(access), threading.Lock()
        self._prefix = urlsplit(access.server).path
        self._connections: urllib3.HTTPConnectionPool | None = None
        self._down = float("-inf")

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        kind: str = JSON,
        accept: str = JSON,
        seconds: float = 10.0,
    ) -> dict[str, Any]:
        """The answer's JSON object, which may keep us waiting for `seconds`. `body` is sent as JSON with the content type `kind`.

        Raises NotFound (no such object), ClusterConflict, Expired, ClusterForbids, InvalidParameter (refused by the schema),
        FailedPrecondition (the CRDs are missing), ClusterUnavailable.
        """
        if time.monotonic() < self._down:
            raise ClusterUnavailable(self._unreachable("as a moment ago"))
        data = None if body is None else json.dumps(body).encode()
        answer = self._asked(method, self._url(path, query), data, {"Accept": accept, "Content-Type": kind}, seconds)
        return _object(answer.status, answer.data, answer.headers.get("Retry-After", ""))

    def clock(self) -> float:
        """The server's time in whole seconds since 1970, by the Date of an answer (RFC 9110, 6.6.1). Raises as `call`."""
        answer = self._asked("GET", self._url("/version", None), None, {"Accept": JSON}, _CONNECT_SECONDS)
        _object(answer.status, answer.data, "")
        try:
            return email.utils.parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
        except ValueError:
            raise ClusterUnavailable("the Kubernetes API server tells no time") from None

    def stream(self, path: str, query: Mapping[str, str], seconds: float, accept: str = JSON) -> Stream:
        """A watch's lines, for at most `seconds`. Raises as `call`."""
        answer = self._asked("GET", self._url(path, query), None, {"Accept": accept}, seconds, preload=False)
        if answer.status == 200:
            return Stream(self, answer)
        try:
            _object(answer.status, answer.read(_LONGEST_LINE), answer.headers.get("Retry-After", ""))
        finally:
            _close(answer)
        raise ClusterUnavailable(self._unreachable(f"HTTP {answer.status} to a watch"))

    def _asked(
        self, method: str, url: str, data: bytes | None, headers: dict[str, str], seconds: float, preload: bool = True
    ) -> urllib3.BaseHTTPResponse:
        answer = self._sent(method, url, data, self._authorised(headers), seconds, preload)
        if answer.status == 401 and self.access.token_file:
            _close(answer)
            answer = self._sent(method, url, data, self._authorised(headers, anew=True), seconds, preload)
        return answer

    def _url(self, path: str, query: Mapping[str, str] | None) -> str:
        return self._prefix + path + (f"?{urlencode(query)}" if query else "")

    def _authorised(self, headers: dict[str, str], anew: bool = False) -> dict[str, str]:
        token = self._token.now(anew)
        agent = {"User-Agent": f"datacache-csi/{__version__}"}
        return {**headers, **agent, **({"Authorization": f"Bearer {token}"} if token else {})}

    def _sent(self, method: str, url: str, data: bytes | None, headers: dict[str, str], seconds: float, preload: bool) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds)

        def send() -> urllib3.BaseHTTPResponse:
            return self._pool().urlopen(
                method, url, data, headers, retries=False, redirect=False, timeout=timeout, preload_content=preload, pool_timeout=_TURN_SECONDS
            )

        try:
            with suppress(ProtocolError):  # a kept connection that the server has closed
                return send()
            return send()
        except HTTPError as error:
            self.lost()
            self._down = time.monotonic() + _DOWN_SECONDS
            raise ClusterUnavailable(self._unreachable(_words(error))) from None

    def _pool(self) -> urllib3.HTTPConnectionPool:
        with self._guard:
            if self._connections is None:
                named = {"server_hostname": self.access.tls_name} if self.access.tls_name else {}
                tls = {"ssl_context": self.access.tls(), **named} if self.access.server.startswith("https://") else {}
                self._connections = urllib3.connection_from_url(self.access.server, maxsize=_CONNECTIONS, block=True, socket_options=_SOCKET, **tls)
            return self._connections

    def lost(self) -> None:
        """Connect anew from now on: the CA may be another one too."""
        with self._guard:
            self._connections = None

    def _unreachable(self, why: str) -> str:
        return f"the Kubernetes API server {self.access.server} cannot be reached ({why}); the call is tried again, check the server and the network"


class Stream:
    """The lines of a watch, as JSON objects; `end` may come from any thread."""

    def __init__(self, server: ApiServer, answer: urllib3.BaseHTTPResponse) -> None:
        self._server, self._answer, self._ended = server, answer, False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _close(self._answer)

    def end(self) -> None:
        """Let whoever reads stop, as if the server had ended the watch."""
        self._ended = True
        with suppress(ValueError, RuntimeError, OSError):
            self._answer.shutdown()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises ClusterUnavailable where the connection breaks."""
        held = b""
        try:
            for part in self._answer.stream(2**16):
                *lines, held = (held + part).split(b"\n")
                if len(held) > _LONGEST_LINE:
                    raise ClusterUnavailable("the Kubernetes API server sent an event of more than 8 MiB")
                yield from (json.loads(line) for line in lines if line)
        except (HTTPError, OSError, ValueError) as error:
            if not self._ended:
                raise ClusterUnavailable(f"the watch at the Kubernetes API server broke off ({_words(error)})") from None


def _close(answer: urllib3.BaseHTTPResponse) -> None:
    # Closing alone would take the connection's place out of the pool for good.
    answer.close()
    answer.release_conn()


def path_of(*parts: str) -> str:
    """A path of the API: every part as it is, however it is spelled."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _object(status: int, data: bytes, retry_after: str) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if status < 300 and isinstance(answer, dict):
        return answer
    raise refusal(status, answer if isinstance(answer, dict) else {}, retry_after)


def refusal(code: int, status: Mapping[str, Any], retry_after: str = "") -> DataCacheError:
    """The error that a Kubernetes Status (meta/v1) means; `code` is the HTTP status."""
    message, details = str(status.get("message", ""))[:2000], status.get("details") or {}
    if (code == 404 and not details.get("name")) or "field not declared in schema" in message:
        known = message if details or code != 404 else "it does not know this kind of object"
        return FailedPrecondition(
            f"the CRDs of the Kubernetes API server are missing or older than this driver ({known}); apply deploy/crds and try again"
        )
    if code in (401, 403):
        return ClusterForbids(
            f"the Kubernetes API server refuses this: {message or 'who asks is not known'}; give the service account this right (RBAC)"
        )
    if code in (400, 413, 422):
        return InvalidParameter(f"the Kubernetes API server refuses the object: {message or f'HTTP {code}'}")
    kinds: dict[int, type[DataCacheError]] = {404: NotFound, 409: ClusterConflict, 410: Expired}
    if code in kinds:
        return kinds[code](f"the Kubernetes API server answers: {message}")
    wait = f", and asks to wait for {retry_after} s" if retry_after else ""
    return ClusterUnavailable(f"the Kubernetes API server answers HTTP {code} ({message or 'no reason given'}){wait}; the call is tried again")


def _words(error: Exception) -> str:
    """What broke, without the text of a foreign exception."""
    if isinstance(error, SSLError):
        return "its certificate is not trusted, or TLS failed"
    inner = getattr(error, "__cause__", None) or error
    return getattr(inner, "strerror", None) or type(error).__name__
