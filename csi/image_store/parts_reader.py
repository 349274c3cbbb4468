"""Reader of an image's parts by number, the order of a fill; in the store their names are their checksums."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

from csi.image_store.stored_image import StoredImage
from csi.manifest.manifest import Entry
from csi.manifest.reader import OpenReader, Reader


class PartsReader(Reader):
    """Reader of parts; for one thread, as a context manager."""

    def __init__(self, open_reader: OpenReader, stored: StoredImage) -> None:
        self._context: AbstractContextManager[Reader] = open_reader()
        self._stored = stored

    def read_into(self, entry: Entry, offset: int, buffer: memoryview) -> None:
        self._reader.read_into(replace(entry, path=self._stored.parts[int(entry.path)]), offset, buffer)

    def __enter__(self) -> PartsReader:
        self._reader = self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)
