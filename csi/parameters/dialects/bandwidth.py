"""`bandwidthLimit`: how many bytes per second a fill may fetch."""

from __future__ import annotations

from csi.performance.limits import MAX_BANDWIDTH
from csi.values import quantity

_LEAST = 1 << 16


def bandwidth_limit(text: str) -> int | None:
    """Bytes per second, None for ""; raises InvalidParameter naming the key and its range."""
    return quantity("bandwidthLimit", text, _LEAST, MAX_BANDWIDTH) if text else None
