"""An image on its way from one image store to another, part by part; what is there already is not sent again."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from csi.errors import CorruptContent, FillStopped, NotFound
from csi.image_store.backend import Backend
from csi.image_store.stored_image import StoredImage, index_of, manifest_of, parts_of, unwanted_of
from csi.image_store.uploading import Stopped, Tell, patiently
from csi.images.progress import ProgressMeter
from csi.manifest.manifest import Entry, Kind
from csi.manifest.reader import OpenReader

_COPIES = 3


class ImageCopy:
    """The image `digest` on its way from `source` to `target`."""

    def __init__(self, source: Backend, target: Backend, digest: str, tell: Tell | None = None, stopped: Stopped = lambda: False) -> None:
        self._source, self._target, self._digest, self._tell, self._stopped = source, target, digest, tell, stopped

    def run(self) -> None:
        """Bring it there, its record last, so that it is whole or not there; one that is there stays as it is.

        Raises NotFound where the source does not have it, CorruptContent where a part is not what its name says, FillStopped when told to
        stop, and what a Backend raises; what is there by then stays, and the next one goes on from there.
        """
        if patiently(lambda: self._target.get(index_of(self._digest))) is not None:
            self._target.delete(unwanted_of(self._digest))
            return
        index = patiently(lambda: self._source.get(index_of(self._digest)))
        manifest = patiently(lambda: self._source.get(manifest_of(self._digest)))
        if index is None or manifest is None:
            raise NotFound(f"{self._source.shown} has no image {self._digest[:12]}")
        stored = StoredImage.decode(index, self._digest)
        patiently(lambda: self._target.put(manifest_of(self._digest), manifest))
        self._parts(stored)
        patiently(lambda: self._target.put(index_of(self._digest), index))

    def _parts(self, stored: StoredImage) -> None:
        opens, total = self._source.reader(parts_of(self._digest)), stored.image_bytes - stored.data_at
        meter, done = ProgressMeter(total, self._tell), 0
        numbers = range(len(stored.parts))
        with ThreadPoolExecutor(_COPIES) as threads:
            for number, size in zip(numbers, threads.map(lambda one: self._part(opens, stored, one), numbers), strict=True):
                done += size
                meter.update(done, done, 0, final=number + 1 == len(numbers))

    def _part(self, opens: OpenReader, stored: StoredImage, number: int) -> int:
        if self._stopped():
            raise FillStopped("copying the image was told to stop; what is there stays, and the next one goes on from there")
        name, size = stored.parts[number], stored.part_size(number)
        key = f"{parts_of(self._digest)}/{name}"
        if patiently(lambda: self._target.size(key)) != size:
            content = bytearray(size)
            patiently(lambda: _read(opens, Entry(name, Kind.FILE, size=size), content))
            if hashlib.sha256(content).hexdigest() != name:
                raise CorruptContent(f"{self._source.shown} has a damaged part of image {self._digest[:12]}; remove that image there")
            patiently(lambda: self._target.put(key, memoryview(content)))
        return size


def _read(opens: OpenReader, entry: Entry, content: bytearray) -> None:
    with opens() as reader:
        reader.read_into(entry, 0, memoryview(content))
