"""Where the image store keeps its objects, behind one Protocol: a folder, or a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from csi.manifest.reader import OpenReader


@dataclass(frozen=True)
class StoredObject:
    """An object: its key, bytes, and when it was put (seconds since 1970, by the store's clock)."""

    key: str
    size: int
    modified_at: float


class Backend(Protocol):
    """Objects by key ("folder/name"), each whole or not there. Thread-safe.

    All raise OriginUnavailable where trying again may help, Unauthenticated and PermissionDenied where the credential does not do, NoSpace.
    """

    @property
    def display_name(self) -> str:
        """The store as messages name it."""

    def get(self, key: str) -> bytes | None:
        """The bytes of a small object, None where there is none."""

    def size(self, key: str) -> int | None:
        """The bytes of an object, None where there is none."""

    def put(self, key: str, content: bytes | memoryview) -> None:
        """Put an object, durably, in the place of one that is there. Of two who put at once, one is whole."""

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        """All objects whose keys begin with `folder`/."""

    def list_folders(self, folder: str) -> Iterator[str]:
        """The names of the folders that are directly below `folder`."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def sweep(self, modified_before: float) -> None:
        """Remove what puts that were cut have left, where they were cut before `modified_before` (seconds since 1970, by the store's clock)."""

    def get_reader_factory(self, folder: str) -> OpenReader:
        """Opens readers for entries whose paths are keys below `folder`."""

    def close(self) -> None:
        """Let go of all connections."""
