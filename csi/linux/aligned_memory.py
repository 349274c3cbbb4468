"""Page-aligned memory, as O_DIRECT wants it, used again and again: memory the kernel has to clear first costs as much as a hash."""

from __future__ import annotations

import mmap


class AlignedBuffer:
    """`size` bytes of page-aligned, writable memory, in `view`."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
