"""What was proven: which credential could read which spec, and what it resolved to.

An answer is filed under HMAC-SHA256(key; credential, spec), so that neither the credential nor a guess at it can be read
from the folder without the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from csi.errors import DataCacheError
from csi.linux import durable_files
from csi.parameters.cache_spec import CacheSpec
from csi.worker.protocol import Resolution

_FORMAT = 1


class ProofMemory:
    """Remembered answers in `folder`, each at most `grace` seconds old; those within `ttl` seconds count as fresh. Thread-safe."""

    def __init__(
        self, folder: Path, key: bytes, ttl: float, grace: float, clock: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._key, self._ttl, self._grace, self._clock = folder, key, ttl, grace, clock
        self._sweep()

    def remember(self, secrets: Mapping[str, str], spec: CacheSpec, resolution: Resolution) -> None:
        """Keep that this credential read `resolution` when it asked for `spec`."""
        durable_files.write_json(
            self._path(secrets, spec),
            {"format": _FORMAT, "time": self._clock(), "found": resolution.encode()},
        )

    def share_proof(self, secrets: Mapping[str, str], proven: CacheSpec, spec: CacheSpec) -> None:
        """`spec` means what `proven` does: what this credential proved of the one answers for the other, for as long as it has left."""
        path = self._path(secrets, spec)
        with suppress(FileNotFoundError):  # forgotten meanwhile
            content = self._path(secrets, proven).read_bytes()
            if not path.exists() or path.read_bytes() != content:
                durable_files.write_bytes(path, content)

    def find_fresh(self, secrets: Mapping[str, str], spec: CacheSpec) -> Resolution | None:
        """What was proven within the last `ttl` seconds."""
        return self._load(secrets, spec, self._ttl)

    def find_within_grace(self, secrets: Mapping[str, str], spec: CacheSpec) -> Resolution | None:
        """What was proven within the grace: good enough while the origin cannot be asked."""
        return self._load(secrets, spec, self._grace)

    def forget(self, secrets: Mapping[str, str], spec: CacheSpec) -> None:
        """Drop all that this credential has proven of the source, whatever the revision: the origin has refused it."""
        for path in self._folder.glob(self._get_source_prefix(secrets, spec) + "*"):
            path.unlink(missing_ok=True)

    def _load(self, secrets: Mapping[str, str], spec: CacheSpec, max_age: float) -> Resolution | None:
        try:
            record = durable_files.read_json(self._path(secrets, spec), _FORMAT)
            if not 0 <= self._clock() - record["time"] < max_age:
                return None
            return Resolution.decode(record["found"])
        except (FileNotFoundError, DataCacheError, KeyError, TypeError):
            return None

    def get_key(self, secrets: Mapping[str, str], spec: CacheSpec) -> str:
        """The keyed hash of a credential and a spec, 64 hex digits; the first half is the same for every revision of the source."""
        return self._get_source_prefix(secrets, spec) + self._hash(secrets, spec.canonical_text())

    def _get_source_prefix(self, secrets: Mapping[str, str], spec: CacheSpec) -> str:
        return self._hash(secrets, spec.source.origin_scope)

    def _hash(self, secrets: Mapping[str, str], text: str) -> str:
        return hmac.new(
            self._key, json.dumps([sorted(secrets.items()), text]).encode(), hashlib.sha256
        ).hexdigest()[:32]

    def _path(self, secrets: Mapping[str, str], spec: CacheSpec) -> Path:
        return self._folder / self.get_key(secrets, spec)

    def _sweep(self) -> None:
        oldest = self._clock() - self._grace
        for path in self._folder.iterdir():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
