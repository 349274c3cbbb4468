"""Reads an image's parts by their numbers, which are what a fill orders them by; in the store they have the names of their sums."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

from csi.image_store.stored_image import StoredImage
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader, Reader


class PartsReader:
    """See `csi.manifest.reader.Reader`; for one thread, as a context."""

    def __init__(self, open_reader: OpenReader, stored: StoredImage) -> None:
        self._context: AbstractContextManager[Reader] = open_reader()
        self._stored = stored

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        """See `csi.manifest.reader.Reader`."""
        self._reader.read_into(replace(entry, path=self._stored.parts[int(entry.path)]), offset, buffer)

    def __enter__(self) -> PartsReader:
        self._reader = self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)
