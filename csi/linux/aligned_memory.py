"""Page-aligned memory for O_DIRECT.

Buffers are meant to be reused: having the kernel clear fresh memory costs as much as hashing it.
"""

from __future__ import annotations

import mmap


class AlignedBuffer:
    """Buffer of `size` page-aligned, writable bytes, accessible through `view`."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
