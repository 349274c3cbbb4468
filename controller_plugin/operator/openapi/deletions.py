"""ClientTokens of deletions, so that a repeated DeleteDataCache gets the answer of the first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from controller_plugin.operator.openapi.nonces import NonceStore
from csi.errors import DataCacheError

Target = tuple[str, str, str]
"""DataCacheId, bucket and path as the call named them."""


class TokenReused(DataCacheError):
    """The ClientToken belongs to the deletion of another DataCache."""


class Deletions:
    """Deletions with a ClientToken, in the store of nonces that all replicas share. Thread-safe.

    They are forgotten with the nonces, after some minutes. Both methods raise as the store.
    """

    def __init__(self, nonces: NonceStore, now: Callable[[], float] = time.time) -> None:
        self._nonces, self._now = nonces, now

    def remember(self, token: str, target: Target) -> None:
        """Remember that a call with `token` has deleted `target`."""
        for mark in (_hash(token), _hash(token, *target)):
            self._nonces.use(mark, self._now())

    def has_deleted(self, token: str, target: Target) -> bool:
        """Return whether an earlier call with `token` deleted `target`; raises TokenReused for another."""
        of_token, of_target = _hash(token), _hash(token, *target)
        used = self._nonces.find_used((of_token, of_target), self._now())
        if of_target in used:
            return True
        if of_token in used:
            raise TokenReused("the token belongs to the deletion of another DataCache; use another one")
        return False


def _hash(*words: str) -> str:
    # "delete" keeps these apart from the nonces of signatures in the same store.
    return hashlib.sha256("\0".join(("delete", *words)).encode()).hexdigest()
