"""The key `bandwidthLimit`: the maximum rate of a fill, in bytes per second."""

from __future__ import annotations

from csi.performance.limits import MAX_BANDWIDTH
from csi.values import quantity_value

# 64 KiB/s: less is a forgotten unit, and would stall a fill.
_MIN_BANDWIDTH = 1 << 16


def parse_bandwidth_limit(text: str) -> int | None:
    """Parse into bytes per second, None for ""; raises InvalidParameter naming the key and its range."""
    return quantity_value("bandwidthLimit", text, _MIN_BANDWIDTH, MAX_BANDWIDTH) if text else None
