"""Sizes as messages show them."""

from __future__ import annotations

_UNITS = ("KiB", "MiB", "GiB", "TiB")


def human(size: int) -> str:
    """`size` bytes in the largest binary unit it has one of: "512 B", "4.0 MiB", "15.2 GiB"."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    return f"{size / 1024**power:.1f} {_UNITS[power - 1]}"
