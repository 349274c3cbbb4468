"""Storage of the image store's objects behind one Protocol: a folder, or a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from csi.manifest.reader import OpenReader


@dataclass(frozen=True)
class StoredObject:
    """An object: its key, its size in bytes, and when it was written.

    Times are in seconds since 1970, by the store's clock.
    """

    key: str
    size: int
    modified_at: float


class Backend(Protocol):
    """Objects by key ("folder/name"), each complete or absent. Thread-safe.

    All methods raise OriginUnavailable if a retry may help, Unauthenticated and PermissionDenied if the
    credential is not sufficient, and NoSpace.
    """

    @property
    def display_name(self) -> str:
        """The store as messages name it."""

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a small object, None if it does not exist."""

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, None if it does not exist."""

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Write an object durably, replacing an existing one.

        Of two concurrent writes, one wins completely.
        """

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        """Yield all objects whose keys begin with `folder`/."""

    def list_folders(self, folder: str) -> Iterator[str]:
        """Yield the names of the folders directly below `folder`."""

    def delete(self, key: str) -> None:
        """Delete an object; does nothing if it does not exist."""

    def sweep(self, modified_before: float) -> None:
        """Remove leftovers of writes interrupted before `modified_before`.

        It is in seconds since 1970, by the store's clock.
        """

    def get_reader_factory(self, folder: str) -> OpenReader:
        """Return a factory of readers for entries whose paths are keys below `folder`."""

    def close(self) -> None:
        """Close all connections."""
