"""Which requests were made already, by a mark of each: in this process, in a file, or in a Secret that all replicas see."""

from __future__ import annotations

import base64
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
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
    """Marks of the last while. Thread-safe. Beyond as many as it can hold the oldest are forgotten."""

    def use(self, mark: str, now: float) -> bool:
        """Whether the mark is new; it is not from now on. `now` in seconds since 1970. Where they are in a cluster, raises as `ApiServer.call`."""


class MemoryNonceStore:
    """See Nonces: those of the last `seconds` that this process was shown."""

    def __init__(self, seconds: float, most: int = _MAX_IN_MEMORY) -> None:
        self._seconds, self._most, self._guard = seconds, most, threading.Lock()
        self._seen: OrderedDict[str, float] = OrderedDict()

    def use(self, mark: str, now: float) -> bool:
        """See Nonces."""
        with self._guard:
            while self._seen and (
                len(self._seen) >= self._most or next(iter(self._seen.values())) < now - self._seconds
            ):
                self._seen.popitem(last=False)
            if mark in self._seen:
                return False
            self._seen[mark] = now
            return True


class FileNonceStore:
    """See Nonces: in a file, for one process at a time, and the next one."""

    def __init__(self, file: Path, seconds: float) -> None:
        self._file, self._seconds, self._guard = file, seconds, threading.Lock()

    def use(self, mark: str, now: float) -> bool:
        """See Nonces; raises DataCacheError where the file is damaged."""
        with self._guard:
            try:
                known = durable_files.read_json(self._file, _FORMAT)[_KEY]
            except FileNotFoundError:
                known = {}
            if mark in known:
                return False
            durable_files.write_json(
                self._file,
                {"format": _FORMAT, _KEY: _drop_old_marks({**known, mark: now}, now - self._seconds)},
            )
            return True


class SecretNonceStore:
    """See Nonces: in the Secret `name` of the namespace that the program runs in, for all its replicas."""

    def __init__(self, server: ApiServer, name: str, seconds: float) -> None:
        self._server, self._name, self._seconds = server, name, seconds
        self._secrets = api_path("api", "v1", "namespaces", server.access.namespace, "secrets")

    def use(self, mark: str, now: float) -> bool:
        """See Nonces; raises ClusterConflict where others use theirs all the time."""
        for _ in range(_MAX_TRIES):
            thing = self._get_secret()
            known = _decode_marks(thing)
            if mark in known:
                return False
            try:
                self._write_secret(thing, _drop_old_marks({**known, mark: now}, now - self._seconds))
            except ClusterConflict:
                continue
            return True
        raise ClusterConflict("many calls are made at once; make this one again")

    def _get_secret(self) -> dict[str, Any]:
        try:
            return self._server.call("GET", f"{self._secrets}/{self._name}")
        except NotFound:
            return {}

    def _write_secret(self, thing: Mapping[str, Any], marks: Mapping[str, float]) -> None:
        data = {_KEY: base64.b64encode(json.dumps(marks).encode()).decode()}
        if thing:
            self._server.call("PUT", f"{self._secrets}/{self._name}", body={**thing, "data": data})
        else:
            self._server.call(
                "POST",
                self._secrets,
                body={"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self._name}, "data": data},
            )


def _decode_marks(thing: Mapping[str, Any]) -> dict[str, float]:
    if not thing:
        return {}
    try:
        return {
            str(mark): float(when) for mark, when in json.loads(base64.b64decode(thing["data"][_KEY])).items()
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataCacheError(
            f"the Secret {thing['metadata']['name']} has no marks of requests; delete it, and it is made anew"
        ) from error


def _drop_old_marks(marks: Mapping[str, float], since: float) -> dict[str, float]:
    """Those since then, the last of them where they are too many."""
    young = sorted(((when, mark) for mark, when in marks.items() if when >= since), reverse=True)[
        :_MAX_STORED
    ]
    return {mark: when for when, mark in young}
