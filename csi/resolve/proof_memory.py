"""Stored proofs: which credential could read which spec, and what it resolved to.

A proof's file name is HMAC-SHA256(key; credential, spec): without the key, the folder reveals no credential
and allows no test of a guessed one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from csi.errors import DataCacheError
from csi.linux import durable_files
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.content_ref import Secrets
from csi.worker.results import Resolution

_FORMAT = 1


class ProofMemory:
    """Proofs in `folder`, kept for `grace` seconds and fresh for `ttl` seconds. Thread-safe."""

    def __init__(
        self, folder: Path, key: bytes, ttl: float, grace: float, clock: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._key = folder, key
        self._ttl, self._grace = ttl, grace
        self._clock = clock
        self._sweep()

    def remember(self, secrets: Secrets, spec: CacheSpec, resolution: Resolution) -> None:
        """Store that `spec` resolved to `resolution` and that this credential could read it."""
        durable_files.write_json(
            self._path(secrets, spec),
            {"format": _FORMAT, "time": self._clock(), "found": resolution.encode()},
        )

    def share_proof(self, secrets: Secrets, proven: CacheSpec, spec: CacheSpec) -> None:
        """Copy this credential's proof of `proven` to `spec`, which means the same content.

        The copy keeps the age of the original.
        """
        path = self._path(secrets, spec)
        with suppress(FileNotFoundError):  # removed concurrently by `forget`
            content = self._path(secrets, proven).read_bytes()
            # An unchanged copy is not written again, since this runs for each resolve of a moving source.
            if not path.exists() or path.read_bytes() != content:
                durable_files.write_bytes(path, content)

    def find_fresh(self, secrets: Secrets, spec: CacheSpec) -> Resolution | None:
        """Return the proof of the last `ttl` seconds, or None."""
        return self._load(secrets, spec, self._ttl)

    def find_within_grace(self, secrets: Secrets, spec: CacheSpec) -> Resolution | None:
        """Return the proof of the last `grace` seconds, or None; for use while the origin is unreachable."""
        return self._load(secrets, spec, self._grace)

    def forget(self, secrets: Secrets, spec: CacheSpec) -> None:
        """Remove this credential's proofs for all revisions of the source, because the origin refused it."""
        for path in self._folder.glob(self._get_source_prefix(secrets, spec) + "*"):
            path.unlink(missing_ok=True)

    def _load(self, secrets: Secrets, spec: CacheSpec, max_age: float) -> Resolution | None:
        try:
            record = durable_files.read_json(self._path(secrets, spec), _FORMAT)
            # A negative age comes from a clock that was set back: such a proof would never expire.
            if not 0 <= self._clock() - record["time"] < max_age:
                return None
            return Resolution.decode(record["found"])
        except (FileNotFoundError, DataCacheError, KeyError, TypeError):
            return None

    def get_key(self, secrets: Secrets, spec: CacheSpec) -> str:
        """Return the keyed hash of a credential and a spec, 64 hex digits.

        The first half depends on credential and source only, so that `forget` finds all revisions by prefix.
        """
        return self._get_source_prefix(secrets, spec) + self._hash(secrets, spec.canonical_text())

    def _get_source_prefix(self, secrets: Secrets, spec: CacheSpec) -> str:
        return self._hash(secrets, spec.source.origin_scope)

    def _hash(self, secrets: Secrets, text: str) -> str:
        return hmac.new(
            self._key, json.dumps([sorted(secrets.values.items()), text]).encode(), hashlib.sha256
        ).hexdigest()[:32]

    def _path(self, secrets: Secrets, spec: CacheSpec) -> Path:
        return self._folder / self.get_key(secrets, spec)

    def _sweep(self) -> None:
        # By file time, which `share_proof` may have renewed; `_load` checks the recorded one.
        oldest = self._clock() - self._grace
        for path in self._folder.iterdir():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)


def open_proof_memory(state_dir: Path, ttl: float, offline_grace: float) -> ProofMemory:
    """Open the proofs in `state_dir`, which is created with its key if it does not exist.

    `ttl` and `offline_grace` are in seconds, as in ProofMemory.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = durable_files.load_or_create_key(state_dir / "key")
    return ProofMemory(state_dir / "proofs", key, ttl, offline_grace)
