"""Stores of used nonces, against replayed requests.

They are in memory, in a file, or in a Secret that all replicas share.
"""

from __future__ import annotations

import base64
import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from csi.cluster.api_server import ApiServer, api_path
from csi.errors import ClusterConflict, DataCacheError, NotFound
from csi.linux import durable_files

_FORMAT = 1
_MAX_IN_MEMORY, _MAX_STORED = 100_000, 5_000
_MAX_TRIES = 16
_KEY = "marks"


class NonceStore(Protocol):
    """Store of nonces used recently. Thread-safe. Beyond its capacity it forgets the oldest."""

    def use(self, nonce_hash: str, now: float) -> bool:
        """Mark a nonce as used; return whether it was new.

        `now` is in seconds since 1970. In a cluster raises as `ApiServer.call`.
        """

    def find_used(self, nonce_hashes: Collection[str], now: float) -> set[str]:
        """Return which of the nonces were used recently, without using them. Raises as `use`."""


class MemoryNonceStore(NonceStore):
    """Nonces that this process has seen within `seconds`."""

    def __init__(self, seconds: float, capacity: int = _MAX_IN_MEMORY) -> None:
        self._seconds, self._capacity, self._lock = seconds, capacity, threading.Lock()
        self._seen: OrderedDict[str, float] = OrderedDict()

    def use(self, nonce_hash: str, now: float) -> bool:
        with self._lock:
            while self._seen and (
                len(self._seen) >= self._capacity or next(iter(self._seen.values())) < now - self._seconds
            ):
                self._seen.popitem(last=False)
            if nonce_hash in self._seen:
                return False
            self._seen[nonce_hash] = now
            return True

    def find_used(self, nonce_hashes: Collection[str], now: float) -> set[str]:
        with self._lock:
            return _find_recent(self._seen, nonce_hashes, now - self._seconds)


class FileNonceStore(NonceStore):
    """Nonces in a file, which survive a restart.

    One process at a time; raises DataCacheError if the file is damaged.
    """

    def __init__(self, file: Path, seconds: float) -> None:
        self._file, self._seconds, self._lock = file, seconds, threading.Lock()

    def use(self, nonce_hash: str, now: float) -> bool:
        with self._lock:
            known = self._read()
            if nonce_hash in known:
                return False
            durable_files.write_json(
                self._file,
                {"format": _FORMAT, _KEY: _drop_old_marks({**known, nonce_hash: now}, now - self._seconds)},
            )
            return True

    def find_used(self, nonce_hashes: Collection[str], now: float) -> set[str]:
        with self._lock:
            return _find_recent(self._read(), nonce_hashes, now - self._seconds)

    def _read(self) -> dict[str, float]:
        try:
            known: dict[str, float] = durable_files.read_json(self._file, _FORMAT)[_KEY]
            return known
        except FileNotFoundError:
            return {}


class SecretNonceStore(NonceStore):
    """Nonces in the Secret `name` of the program's own namespace, shared by all replicas."""

    def __init__(self, server: ApiServer, name: str, seconds: float) -> None:
        self._server, self._name, self._seconds = server, name, seconds
        self._secrets = api_path("api", "v1", "namespaces", server.access.namespace, "secrets")

    def use(self, nonce_hash: str, now: float) -> bool:
        # A conflict means that another replica has stored a nonce meanwhile: read again, as it may be this
        # one.
        for _ in range(_MAX_TRIES):
            secret = self._get_secret()
            known = _decode_marks(secret)
            if nonce_hash in known:
                return False
            try:
                self._write_secret(secret, _drop_old_marks({**known, nonce_hash: now}, now - self._seconds))
            except ClusterConflict:
                continue
            return True
        raise ClusterConflict("too many calls are made at once; make this one again")

    def find_used(self, nonce_hashes: Collection[str], now: float) -> set[str]:
        return _find_recent(_decode_marks(self._get_secret()), nonce_hashes, now - self._seconds)

    def _get_secret(self) -> dict[str, Any]:
        try:
            return self._server.call("GET", f"{self._secrets}/{self._name}")
        except NotFound:
            return {}

    def _write_secret(self, secret: Mapping[str, Any], marks: Mapping[str, float]) -> None:
        data = {_KEY: base64.b64encode(json.dumps(marks).encode()).decode()}
        if secret:
            self._server.call("PUT", f"{self._secrets}/{self._name}", body={**secret, "data": data})
        else:
            self._server.call(
                "POST",
                self._secrets,
                body={"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self._name}, "data": data},
            )


def _decode_marks(secret: Mapping[str, Any]) -> dict[str, float]:
    if not secret:
        return {}
    try:
        return {
            str(mark): float(when)
            for mark, when in json.loads(base64.b64decode(secret["data"][_KEY])).items()
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataCacheError(
            f"the Secret {secret['metadata']['name']} does not hold request nonces; "
            "delete it, and it is created again"
        ) from error


def _find_recent(marks: Mapping[str, float], wanted: Collection[str], since: float) -> set[str]:
    return {mark for mark in wanted if marks.get(mark, float("-inf")) >= since}


def _drop_old_marks(marks: Mapping[str, float], since: float) -> dict[str, float]:
    """Drop nonces older than `since`, and the oldest beyond the capacity."""
    recent = sorted(((when, mark) for mark, when in marks.items() if when >= since), reverse=True)[
        :_MAX_STORED
    ]
    return {mark: when for when, mark in recent}
