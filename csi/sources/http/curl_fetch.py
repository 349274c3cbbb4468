"""Small answers over HTTP, fetched whole by libcurl: for a fifth of the time that setting up a stream takes.

Where connections may lead is judged as for streams: each address in the moment of connecting. Redirects are not followed, no
proxy is used but the one that is named, and nothing is read of what a user may have set for curl.
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

LARGEST = SMALL_FILE
"""Bytes of the largest file that is asked for in this way."""
_LOOK_SECONDS = 0.1
_NAP_SECONDS = 0.005
# Of a body that nobody wants: what is left unread costs the connection.
_SPARE = 1 << 16
# Nothing was sent then: a stream, which is tried instead, says what is wrong and costs the origin no second request.
_NOTHING_SENT = (
    pycurl.E_URL_MALFORMAT,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_RESOLVE_PROXY,
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_SSL_CACERT_BADFILE,
)
_TRANSPORT = (
    (pycurl.NOSIGNAL, 1),
    (pycurl.NOPROXY, ""),
    (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
    (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
    (pycurl.SSL_OPTIONS, pycurl.SSLOPT_NO_PARTIALCHAIN),
    (pycurl.BUFFERSIZE, 1 << 18),
    (pycurl.USERAGENT, "datacache-csi"),
)
# Without "@": curl would make a login of what stands before it.
_PLAIN_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]!$&'()*+,;=%]+")
_OF_PROXY = {pycurl.CAINFO: pycurl.PROXY_CAINFO, pycurl.CAPATH: pycurl.PROXY_CAPATH}
_ENDED_EARLY = (pycurl.E_PARTIAL_FILE, pycurl.E_GOT_NOTHING)


class Headers(dict[str, str]):
    """The headers of an answer, asked for in any case; those that came more than once are one, with commas."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        found: dict[str, str] = {}
        for line in b"".join(lines).decode("iso-8859-1").replace("\r\n", "\n").split("\n"):
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            found[name] = f"{found[name]}, {value}" if name in found else value
        super().__init__(found)

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(key.lower())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(key.lower())

    def get(self, key: str, default: str = "") -> str:  # type: ignore[override]
        """The header's value, else `default`."""
        return super().get(key.lower(), default)


class SmallAnswer:
    """An answer that is here already, to be read as one of urllib3's is. A body that is longer than was wanted has one byte more than that."""

    def __init__(self, status: int, headers: Headers, body: memoryview) -> None:
        self.status, self.headers, self._body = status, headers, body

    def read1(self, count: int) -> memoryview:
        """The next bytes, at most `count`; none at the end."""
        data, self._body = self._body[:count], self._body[count:]
        return data

    read = read1

    def release_conn(self) -> None:
        """Its connection is free already."""

    close = release_conn


@dataclass(frozen=True)
class Patience:
    """Seconds to connect, seconds (whole ones: curl counts so) with less than `floor` bytes a second, and seconds an idle connection is kept."""

    connect: float
    silence: float
    idle: float
    floor: float


@dataclass(frozen=True)
class SigningKey:
    """What requests to an object store are signed with (AWS Signature Version 4, service "s3")."""

    id: str
    secret: str = field(repr=False)
    region: str


class Request(NamedTuple):
    """One GET of `url`, a site of `host`, for a body of at most `wanted` bytes."""

    url: str
    host: str
    headers: Mapping[str, str]
    wanted: int


Outcome = SmallAnswer | OSError | None
"""An answer, why none came whole, or None where nothing could be sent."""


class SmallAnswers:
    """Asks over connections of its own, for any number of threads; at most `limit` are kept.

    `check(host, port, address)` raises PermissionDenied where the numeric address may not be connected to; `bundle` is the file or
    folder of the CA certificates that are trusted, empty for the system's; `proxy` the URL of the proxy that asks, empty for none.
    """

    def __init__(self, limit: int, check: Callable[[str, int, str], object], bundle: str, patience: Patience, proxy: str = "") -> None:
        self._limit, self._check = limit, check
        trusted = _trusted(bundle)
        self._options = [*_TRANSPORT, *_waits(patience), *trusted, (pycurl.PROXY, proxy), *((_OF_PROXY[option], path) for option, path in trusted)]
        self._kept: list[_Handle] = []
        self._kept_many: _Many | None = None
        self._guard = threading.Lock()

    def get(self, request: Request, key: SigningKey | None = None) -> SmallAnswer | None:
        """The answer; None when nothing could be sent.

        With `key` the request is signed, all its headers too. Raises TimeoutError and other OSErrors when the answer did not come whole.
        """
        if not is_plain(request):
            return None
        with self._handle() as handle:
            outcome = handle.get(request, key)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    def get_many(self, requests: Iterator[Request], may_ask: Callable[[int], bool]) -> Iterator[tuple[int, Outcome]]:
        """What came of each request, as soon as it is there, with its number: the first is 0. They must be plain (`is_plain`).

        The next one is taken from `requests` when `may_ask`, told how many are under way, says so. A caller that wants no more ends
        `requests` and hears of those that are under way. Of callers at the same time, one keeps its connections.
        """
        with self._guard:
            many, self._kept_many = self._kept_many, None
        many = many or _Many(lambda: _Handle(self._check, self._options))
        try:
            yield from many.answers(requests, may_ask)
        finally:
            with self._guard:
                keep = self._limit > 0 and self._kept_many is None
                if keep:
                    self._kept_many = many
            if not keep:
                many.close()

    @contextmanager
    def _handle(self) -> Iterator[_Handle]:
        with self._guard:
            handle = self._kept.pop() if self._kept else None
        handle = handle or _Handle(self._check, self._options)
        try:
            yield handle
        finally:
            with self._guard:
                keep = len(self._kept) < self._limit
                if keep:
                    self._kept.append(handle)
            if not keep:
                handle.close()

    def close(self) -> None:
        """Close the connections that nobody uses now, and keep no others."""
        with self._guard:
            kept: list[_Handle | _Many] = [*self._kept, *filter(None, [self._kept_many])]
            self._kept, self._kept_many, self._limit = [], None, 0
        for handle in kept:
            handle.close()


class _Handle:
    """One connection, or `curl` for one among those of a `_Many`. For one thread at a time."""

    def __init__(self, check: Callable[[str, int, str], object], options: Sequence[tuple[int, Any]]) -> None:
        self._check, self._host, self._wanted = check, "", 0
        self._body, self._head = bytearray(), list[bytes]()
        self.curl, self._options = pycurl.Curl(), options
        self._set_up()

    def _set_up(self) -> None:
        """As a new one, but for its connection."""
        self.curl.reset()
        for option, value in self._options:
            self.curl.setopt(option, value)
        self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._take_head)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._take_body)

    def get(self, request: Request, key: SigningKey | None) -> Outcome:
        if key is None:
            return self._get(request)
        try:
            self._sign(key)
            return self._get(request)
        finally:
            self._set_up()

    def _sign(self, key: SigningKey) -> None:
        options = ((pycurl.AWS_SIGV4, f"aws:amz:{key.region}:s3"), (pycurl.USERNAME, key.id), (pycurl.PASSWORD, key.secret))
        for option, value in options:
            self.curl.setopt(option, value)

    def _get(self, request: Request) -> Outcome:
        self.prepare(request)
        try:
            self.curl.perform()
        except pycurl.error as error:
            return self.outcome(int(error.args[0]), str(error.args[-1]))
        return self.outcome()

    def prepare(self, request: Request) -> None:
        """Be ready to ask."""
        self._host, self._wanted, self._body = request.host, request.wanted, bytearray()
        self.curl.setopt(pycurl.URL, request.url)
        self.curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in request.headers.items()])

    def outcome(self, code: int = pycurl.E_OK, words: str = "") -> Outcome:
        """What came of the request by libcurl's error code, with its own words for that."""
        if code in _NOTHING_SENT:
            return None
        if code not in (pycurl.E_OK, pycurl.E_WRITE_ERROR):
            return _broken(code, words)
        # Not kept: an idle handle has no use for it.
        body, self._body = self._body, bytearray()
        return SmallAnswer(self.curl.getinfo(pycurl.RESPONSE_CODE), Headers(self._head), memoryview(body))

    def close(self) -> None:
        self.curl.close()

    def _open(self, purpose: int, address: Any) -> Any:
        try:
            self._check(self._host, address.addr[1], str(address.addr[0]))
            return socket.socket(address.family, address.socktype, address.protocol)
        except (PermissionDenied, OSError):
            return pycurl.SOCKET_BAD

    def _take_head(self, line: bytes) -> None:
        if line.startswith(b"HTTP/"):
            # Others, such as 100 Continue, may come before.
            self._head = []
        self._head.append(line)

    def _take_body(self, data: bytes) -> int:
        wanted = self._wanted if self._head[0].split(None, 2)[1:2] in ([b"200"], [b"206"]) else max(self._wanted, _SPARE)
        room = wanted + 1 - len(self._body)
        self._body += data[:room]
        # Anything else than all ends the transfer.
        return len(data) if len(data) <= room else 0


class _Many:
    """Handles whose connections are one pool. For one thread at a time."""

    def __init__(self, new: Callable[[], _Handle]) -> None:
        self._new, self._multi = new, pycurl.CurlMulti()
        self._idle: list[_Handle] = []
        self._busy: dict[pycurl.Curl, tuple[int, _Handle]] = {}

    def answers(self, requests: Iterator[Request], may_ask: Callable[[int], bool]) -> Iterator[tuple[int, Outcome]]:
        numbered = enumerate(requests)
        try:
            while self._start(numbered, may_ask) or self._busy:
                self._multi.perform()
                yield from self._ended()
        finally:
            for curl in list(self._busy):
                self._free(curl)

    def _start(self, numbered: Iterator[tuple[int, Request]], may_ask: Callable[[int], bool]) -> bool:
        """Begin what may be begun; whether there may be more to begin later."""
        while may_ask(len(self._busy)):
            number, request = next(numbered, (0, None))
            if request is None:
                return False
            handle = self._idle.pop() if self._idle else self._new()
            handle.prepare(request)
            self._busy[handle.curl] = number, handle
            self._multi.add_handle(handle.curl)
        return True

    def _ended(self) -> Iterator[tuple[int, Outcome]]:
        _, whole, failed = self._multi.info_read(max(1, len(self._busy)))
        for curl, code, words in (*((curl, pycurl.E_OK, "") for curl in whole), *failed):
            number, handle = self._free(curl)
            yield number, handle.outcome(code, words)
        if not (whole or failed) and self._multi.select(_LOOK_SECONDS) < 0:
            # No descriptor to wait for: a name is being looked up, or nothing may be asked for now.
            time.sleep(_NAP_SECONDS if self._busy else _LOOK_SECONDS)

    def _free(self, curl: pycurl.Curl) -> tuple[int, _Handle]:
        number, handle = self._busy.pop(curl)
        self._multi.remove_handle(curl)
        self._idle.append(handle)
        return number, handle

    def close(self) -> None:
        for handle in self._idle:
            handle.close()
        self._multi.close()


def is_plain(request: Request) -> bool:
    """Whether curl sends these as they are, and nothing else."""
    return _PLAIN_URL.fullmatch(request.url) is not None and all(text.isascii() and text.isprintable() and text for text in request.headers.values())


def _broken(code: int, words: str) -> OSError:
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return TimeoutError("no answer in time")
    if code in (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CONNECT_ERROR):
        return _tls_failed(words.rpartition(":")[2].strip(), untrusted=code == pycurl.E_PEER_FAILED_VERIFICATION)
    if code in _ENDED_EARLY:
        return ConnectionError(errno.ECONNRESET, "the connection ended early")
    if code in (pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR):
        return ConnectionError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return ConnectionError("no answer that can be read")


def _tls_failed(words: str, untrusted: bool) -> ssl.SSLError:
    """As Python's own TLS says it."""
    if not untrusted:
        failed = ssl.SSLError()
        failed.reason = words
        return failed
    refused = ssl.SSLCertVerificationError()
    refused.verify_message = words
    return refused


def _waits(patience: Patience) -> list[tuple[int, Any]]:
    return [
        (pycurl.CONNECTTIMEOUT_MS, int(patience.connect * 1000)),
        (pycurl.LOW_SPEED_LIMIT, int(patience.floor)),
        (pycurl.LOW_SPEED_TIME, math.ceil(patience.silence)),
        (pycurl.MAXAGE_CONN, int(patience.idle)),
    ]


def _trusted(bundle: str) -> list[tuple[int, Any]]:
    if bundle:
        return [(pycurl.CAINFO, None), (pycurl.CAPATH, bundle)] if Path(bundle).is_dir() else [(pycurl.CAINFO, bundle)]
    system = ssl.get_default_verify_paths()
    return [(option, path) for option, path in ((pycurl.CAINFO, system.cafile), (pycurl.CAPATH, system.capath)) if path]
