"""The capacity of a cache volume: whole GiB, as the ESSD formulae count."""

from __future__ import annotations

GIB = 2**30


def round_up_to_gib(content_bytes: int) -> int:
    """The bytes of the smallest disk that holds the content: whole GiB, at least one, as the ESSD formulae count."""
    return max(1, -(-content_bytes // GIB)) * GIB
