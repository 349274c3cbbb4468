"""The interface of every source. Each source has a module; `csi.sources.catalog` knows them all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from csi.manifest.manifest import Manifest
from csi.manifest.reader import Reader
from csi.parameters.cache_spec import CacheSpec

# Connections that a source keeps for its readers if nothing else is said; idle ones beyond them are closed.
DEFAULT_CONNECTIONS = 16


class Source(Protocol):
    """A cache spec and its credential, ready for requests. Used only in worker processes.

    All methods raise the errors of `csi.errors`: SourceNotFound, Unauthenticated, PermissionDenied,
    OriginUnavailable, UnsafeContent, SourceChanged; their messages contain no secret.
    """

    def pin(self) -> CacheSpec:
        """Return the spec with a moving revision replaced by its current commit.

        Takes at most one round trip, none if nothing can move.
        """

    def resolve(self, pinned: CacheSpec) -> Manifest:
        """List everything in `pinned`.

        Two calls, on any two machines, give manifests of equal digest while the origin is unchanged.
        """

    def check_read_access(self, manifest: Manifest) -> None:
        """Raise unless this credential can read the files.

        Bytes are read from the origin: listing is not reading.
        """

    def open_reader(self, manifest: Manifest) -> AbstractContextManager[Reader]:
        """Open a new connection for reading the manifest's files; each reading thread needs its own."""

    def close(self) -> None:
        """Close all connections."""
