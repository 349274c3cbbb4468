"""An image on its way into the image store, in parts, several at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from csi.errors import FillStopped, OriginUnavailable
from csi.image_store.backend import Backend
from csi.image_store.stored_image import parts_of
from csi.images.progress import FillProgress, ProgressMeter

_UPLOADS = 3
_FAILURES = 5
_FIRST_PAUSE = 0.5

T = TypeVar("T")
Tell = Callable[[FillProgress], None]
Stopped = Callable[[], bool]


class Upload:
    """The parts of one image on their way, from its byte `data_at` on; `size` is the image's."""

    def __init__(self, backend: Backend, digest: str, image: Path, data_at: int, part_bytes: int, tell: Tell | None, stopped: Stopped) -> None:
        self._backend, self._digest, self._image, self._part_bytes, self._stopped = backend, digest, image, part_bytes, stopped
        self.size = image.stat().st_size
        self._data_at, self._bytes = data_at, self.size - data_at
        self._meter = ProgressMeter(self._bytes, tell)
        self._done = 0

    def run(self) -> list[str]:
        """The sums of all parts, which are there then."""
        numbers = range(-(-self._bytes // self._part_bytes))
        parts = []
        with ThreadPoolExecutor(_UPLOADS) as threads:
            for number, part in zip(numbers, threads.map(self._put, numbers), strict=True):
                parts.append(part)
                self._done = min(self._bytes, (number + 1) * self._part_bytes)
                self._meter.update(self._done, self._done, 0, final=number + 1 == len(numbers))
        return parts

    def _put(self, number: int) -> str:
        if self._stopped():
            raise FillStopped("bringing the image to the image store was told to stop; what is there stays, and the next one goes on from there")
        with self._image.open("rb", buffering=0) as stream:
            stream.seek(self._data_at + number * self._part_bytes)
            content = stream.read(min(self._part_bytes, self._bytes - number * self._part_bytes))
        part = hashlib.sha256(content).hexdigest()
        key = f"{parts_of(self._digest)}/{part}"
        if patiently(lambda: self._backend.size(key)) != len(content):
            patiently(lambda: self._backend.put(key, content))
        return part


def patiently(work: Callable[[], T]) -> T:
    """What `work` gives, tried a few times where the store may be had again; raises what it raises."""
    for failed in range(_FAILURES):
        try:
            return work()
        except OriginUnavailable:
            if failed == _FAILURES - 1:
                raise
            time.sleep(_FIRST_PAUSE * 2**failed)
    raise AssertionError
