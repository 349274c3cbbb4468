"""What every source can do. One module a source; `csi.sources.catalog` knows them all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from csi.manifest.manifest import Manifest
from csi.manifest.reader import Reader
from csi.parameters.cache_spec import CacheSpec


class Source(Protocol):
    """A cache spec and its credential, ready to be asked. Lives in worker processes only.

    All methods raise the errors of `csi.errors`: SourceNotFound, Unauthenticated, PermissionDenied,
    OriginUnavailable, UnsafeContent, SourceChanged; their messages hold no secret.
    """

    def pin(self) -> CacheSpec:
        """The spec with a moving revision replaced by what it means now; one round trip at most, none where nothing moves."""

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List everything `pinned` holds. Two calls, on any two machines, give manifests of equal digest while the origin is unchanged."""

    def check_read_access(self, manifest: Manifest) -> None:
        """Return if, and only if, this credential may read: bytes of the manifest are read from the origin, since listing is not reading."""

    def open_reader(self, manifest: Manifest) -> AbstractContextManager[Reader]:
        """A fresh connection for reading the manifest's files; one for each thread that reads."""

    def close(self) -> None:
        """Let go of all connections."""
