"""Copy of an image from one image store to another, part by part; parts that exist are not sent again."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from csi.errors import CorruptContent, FillStopped, NotFound
from csi.image_store.backend import Backend
from csi.image_store.stored_image import StoredImage, index_key, manifest_key, parts_folder, unwanted_key
from csi.image_store.uploading import OnProgress, ShouldStop, retry_with_backoff
from csi.images.progress import ProgressMeter
from csi.manifest.manifest import Entry, EntryKind
from csi.manifest.reader import OpenReader

# Each has a whole part in memory.
_MAX_CONCURRENT_COPIES = 3


class ImageCopy:
    """One copy of the image `digest` from `source` to `target`."""

    def __init__(
        self,
        source: Backend,
        target: Backend,
        digest: str,
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop = lambda: False,
    ) -> None:
        self._source = source
        self._target = target
        self._digest = digest
        self._on_progress = on_progress
        self._should_stop = should_stop

    def run(self) -> None:
        """Copy the image, its record last, so that it is complete or absent.

        An existing image stays as it is.

        Raises NotFound if the source does not have it, CorruptContent if a part does not match its name,
        FillStopped if `should_stop` says so, and the errors of a Backend. Finished parts are kept, and the
        next copy continues from there.
        """
        if retry_with_backoff(lambda: self._target.get(index_key(self._digest))) is not None:
            self._target.delete(unwanted_key(self._digest))
            return
        index = retry_with_backoff(lambda: self._source.get(index_key(self._digest)))
        manifest = retry_with_backoff(lambda: self._source.get(manifest_key(self._digest)))
        if index is None or manifest is None:
            raise NotFound(f"{self._source.display_name} has no image {self._digest[:12]}")
        stored = StoredImage.decode(index, self._digest)
        # The record goes last: without it, what is there counts as an unfinished upload.
        retry_with_backoff(lambda: self._target.put(manifest_key(self._digest), manifest))
        self._copy_parts(stored)
        retry_with_backoff(lambda: self._target.put(index_key(self._digest), index))

    def _copy_parts(self, stored: StoredImage) -> None:
        open_reader = self._source.get_reader_factory(parts_folder(self._digest))
        total = stored.image_bytes - stored.data_offset
        meter, done = ProgressMeter(total, self._on_progress), 0
        numbers = range(len(stored.parts))
        with ThreadPoolExecutor(_MAX_CONCURRENT_COPIES) as threads:
            for number, size in zip(
                numbers,
                threads.map(lambda part_number: self._copy_part(open_reader, stored, part_number), numbers),
                strict=True,
            ):
                done += size
                meter.update(done, done, 0, final=number + 1 == len(numbers))

    def _copy_part(self, open_reader: OpenReader, stored: StoredImage, number: int) -> int:
        if self._should_stop():
            raise FillStopped(
                "copying the image was stopped; finished parts are kept, "
                "and the next copy continues from there"
            )
        name, size = stored.parts[number], stored.part_size(number)
        key = f"{parts_folder(self._digest)}/{name}"
        if retry_with_backoff(lambda: self._target.size(key)) != size:
            content = bytearray(size)
            retry_with_backoff(
                lambda: _read_part(open_reader, Entry(name, EntryKind.FILE, size=size), content)
            )
            if hashlib.sha256(content).hexdigest() != name:
                raise CorruptContent(
                    f"{self._source.display_name} has a damaged part of image {self._digest[:12]}; "
                    "remove that image there"
                )
            retry_with_backoff(lambda: self._target.put(key, memoryview(content)))
        return size


def _read_part(open_reader: OpenReader, entry: Entry, content: bytearray) -> None:
    with open_reader() as reader:
        reader.read_into(entry, 0, memoryview(content))
