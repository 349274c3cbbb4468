"""The capacity of a cache volume in whole GiB, the unit of the ESSD formulae."""

from __future__ import annotations

GIB = 2**30


def round_up_to_gib(content_bytes: int) -> int:
    """Return the bytes of the smallest disk that holds the content: whole GiB, at least one."""
    return max(1, -(-content_bytes // GIB)) * GIB
