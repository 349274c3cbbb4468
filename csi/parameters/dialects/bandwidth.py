"""`bandwidthLimit`: how many bytes per second a fill may fetch."""

from __future__ import annotations

from csi.parameters import performance_keys

_LEAST = 1 << 16


def bandwidth_limit(text: str) -> int | None:
    """Bytes per second, None for ""; raises InvalidParameter naming the key and its range."""
    return performance_keys.quantity("bandwidthLimit", text, _LEAST, performance_keys.MAX_BANDWIDTH) if text else None
