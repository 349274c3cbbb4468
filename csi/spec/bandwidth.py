"""`bandwidthLimit`: how many bytes per second a fill may fetch."""

from __future__ import annotations

from csi.spec import performance

_LEAST = 1 << 16


def bandwidth_limit(text: str) -> int | None:
    """Bytes per second, None for ""; raises InvalidParameter naming the key and its range."""
    return performance.quantity("bandwidthLimit", text, _LEAST, performance.MAX_BANDWIDTH) if text else None
