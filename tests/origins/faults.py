"""What can go wrong at a local origin on purpose, and what it counted."""

from __future__ import annotations

import fnmatch
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ACTIONS = (
    "status",
    "hang-up",
    "drop",
    "reset",
    "stall",
    "trickle",
    "truncate",
    "corrupt",
    "wrong-length",
    "ignore-range",
    "no-length",
    "redirect-loop",
)


@dataclass
class Fault:
    """One thing that goes wrong for requests whose key matches `match` (a shell pattern), `times` times (-1:
    always); `count` is how often it did.

    Keys are "org/name/path/of/file" for files and "api/<kind>/org/name" for the API. `listener` is "hub",
    "cdn" or "" for all. Actions: "status" (answer `status`, with Retry-After `retry_after` if that is not
    empty), "hang-up" (end the connection in place of an answer), "drop" (end the connection `after` bytes
    into the body), "reset" (the same, but the client meets a reset), "stall" (wait `seconds` at `after`),
    "trickle" (from `after` on, a byte every `seconds`), "truncate" (a body of `after` bytes, with that
    length), "corrupt" (flip the file's byte at offset `after`), "wrong-length" (say that the file has a byte
    more), "ignore-range" (answer 200 and the whole file), "no-length" (a chunked body), "redirect-loop"
    (redirect to the same address).
    """

    action: str
    match: str = "*"
    times: int = -1
    after: int = 0
    seconds: float = 0.0
    status: int = 503
    retry_after: str = ""
    listener: str = ""
    count: int = 0


class Faults:
    """The faults in force.

    `latency` (seconds before each answer) and `rate` (bytes/s over all connections) are plain attributes.
    """

    def __init__(self) -> None:
        self.latency = 0.0
        self._bucket: TokenBucket | None = None
        self._list: list[Fault] = []
        self._lock = threading.Lock()

    @property
    def rate(self) -> float | None:
        return self._bucket.rate if self._bucket else None

    @rate.setter
    def rate(self, value: float | None) -> None:
        self._bucket = TokenBucket(value) if value else None

    def pace(self, count: int) -> None:
        """Wait until `count` more bytes may be sent."""
        if self._bucket:
            self._bucket.take(count)

    def add(self, fault: Fault) -> Fault:
        assert fault.action in ACTIONS, fault.action
        with self._lock:
            self._list.append(fault)
        return fault

    def clear(self) -> None:
        self.latency, self.rate = 0.0, None
        with self._lock:
            self._list.clear()

    def find(self, action: str, key: str, listener: str) -> Fault | None:
        """The first fault of that kind in force for `key`, if any."""
        with self._lock:
            for fault in self._list:
                if (
                    fault.action == action
                    and fault.times
                    and fault.listener in ("", listener)
                    and fnmatch.fnmatchcase(key, fault.match)
                ):
                    return fault
        return None

    def take(self, action: str, key: str, listener: str) -> Fault | None:
        """As `find`, and it has happened once."""
        fault = self.find(action, key, listener)
        return fault if fault and self.happens(fault) else None

    def happens(self, fault: Fault) -> bool:
        """Whether it is still to happen; it has happened once more then."""
        with self._lock:
            if not fault.times:
                return False
            fault.count += 1
            fault.times -= fault.times > 0
            return True


class TokenBucket:
    """`rate` bytes/s shared by everyone who takes; at most 20 ms worth may be saved up."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, count: int) -> None:
        with self._lock:
            start = max(self._free_at, time.monotonic() - 0.02)
            self._free_at = start + count / self.rate
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


@dataclass
class Sent:
    """How many bytes a send took."""

    count: int


@dataclass
class Counters:
    """What was asked and sent. `requests` by kind ("info", "tree", "resolve", "cdn", ...), `bytes_sent` by
    file key, `authorizations` the Authorization values each listener saw, `connections` those open now by
    listener, `accepted` those ever opened."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes_sent: Counter[str] = field(default_factory=Counter)
    authorizations: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    connections: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, kind: str, listener: str, authorization: str | None) -> None:
        with self.lock:
            self.requests[kind] += 1
            seen = self.authorizations[listener]
            if authorization:
                seen.add(authorization)

    def ended(self) -> None:
        """A signed address was refused because it had ended: "ended" in `requests`."""
        with self.lock:
            self.requests["ended"] += 1

    def sent(self, key: str, count: int) -> None:
        with self.lock:
            self.bytes_sent[key] += count

    @contextmanager
    def sending(self, key: str, count: int) -> Iterator[Sent]:
        """Count before the receiver can look.

        What was not sent in the end (the block says how much was, or fails) is taken back.
        """
        sent = Sent(count)
        self.sent(key, count)
        try:
            yield sent
        except BaseException:
            sent.count = 0
            raise
        finally:
            self.sent(key, sent.count - count)

    def connected(self, listener: str, change: int) -> None:
        with self.lock:
            self.connections[listener] += change
            self.accepted[listener] += max(change, 0)

    def reset(self) -> None:
        """Forget requests, bytes and authorizations; connections stay."""
        with self.lock:
            self.requests.clear()
            self.bytes_sent.clear()
            for seen in self.authorizations.values():
                seen.clear()
