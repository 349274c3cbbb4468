"""Page-aligned memory, as O_DIRECT wants it, used again and again: memory the kernel has to clear first costs as much as a hash."""

from __future__ import annotations

import mmap

from csi.images.chunks import CHUNK


class Buffer:
    """One chunk's worth of page-aligned, writable memory."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
