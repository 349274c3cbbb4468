"""Whole numbers that others write: of so few digits that reading them costs nothing."""

from __future__ import annotations

MOST_DIGITS = 19
"""Enough for every size there is; Python refuses to read thousands of them."""


def whole_number(text: str | None) -> int | None:
    """The number that `text` is, in decimal digits and nothing else; None for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None
