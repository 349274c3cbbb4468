"""Upload of an image into the image store, several parts at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from csi.errors import FillStopped, OriginUnavailable
from csi.image_store.backend import Backend
from csi.image_store.stored_image import parts_folder
from csi.images.progress import FillProgress, ProgressMeter

# Each has a whole part in memory.
_MAX_CONCURRENT_UPLOADS = 3
_MAX_TRANSFER_ATTEMPTS = 5
# Seconds; doubled after each failure.
_MIN_UPLOAD_RETRY_PAUSE = 0.5

T = TypeVar("T")
OnProgress = Callable[[FillProgress], None]
ShouldStop = Callable[[], bool]


class ImageUpload:
    """Upload of the parts of one image, starting at its byte `data_offset`; `size` is that of the image."""

    def __init__(
        self,
        backend: Backend,
        digest: str,
        image: Path,
        data_offset: int,
        part_bytes: int,
        should_stop: ShouldStop,
    ) -> None:
        self._backend = backend
        self._digest = digest
        self._image = image
        self._part_bytes = part_bytes
        self._should_stop = should_stop
        self.size = image.stat().st_size
        self._data_offset, self._total_bytes = data_offset, self.size - data_offset

    def run(self, on_progress: OnProgress | None) -> list[str]:
        """Upload all missing parts; return the checksums of all parts."""
        meter = ProgressMeter(self._total_bytes, on_progress)
        numbers = range(-(-self._total_bytes // self._part_bytes))
        parts = []
        with ThreadPoolExecutor(_MAX_CONCURRENT_UPLOADS) as threads:
            for number, part in zip(numbers, threads.map(self._upload_part, numbers), strict=True):
                parts.append(part)
                done_bytes = min(self._total_bytes, (number + 1) * self._part_bytes)
                meter.update(done_bytes, done_bytes, 0, final=number + 1 == len(numbers))
        return parts

    def _upload_part(self, number: int) -> str:
        if self._should_stop():
            raise FillStopped(
                "the upload to the image store was stopped; "
                "finished parts are kept, and the next upload continues from there"
            )
        with self._image.open("rb", buffering=0) as stream:
            stream.seek(self._data_offset + number * self._part_bytes)
            content = stream.read(min(self._part_bytes, self._total_bytes - number * self._part_bytes))
        # Content addressing makes uploads resumable: a part with this name and size is this part.
        part = hashlib.sha256(content).hexdigest()
        key = f"{parts_folder(self._digest)}/{part}"
        if retry_with_backoff(lambda: self._backend.size(key)) != len(content):
            retry_with_backoff(lambda: self._backend.put(key, content))
        return part


def retry_with_backoff(work: Callable[[], T]) -> T:
    """Call `work`, retrying a few times on OriginUnavailable, and return its result."""
    for attempt in range(_MAX_TRANSFER_ATTEMPTS):
        try:
            return work()
        except OriginUnavailable:
            if attempt == _MAX_TRANSFER_ATTEMPTS - 1:
                raise
            time.sleep(_MIN_UPLOAD_RETRY_PAUSE * 2**attempt)
    raise AssertionError
