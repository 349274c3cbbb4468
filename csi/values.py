"""How messages quote what a caller gave."""

from __future__ import annotations


def shown(value: str, longest: int = 60) -> str:
    """`value` in quotes, cut after `longest` characters, without what a URL may carry in secret: user info ('@'), query ('?'), fragment ('#')."""
    address, question, _ = value.partition("?")
    user, at, rest = address.rpartition("@")
    rest, fragment, _ = rest.partition("#")
    return repr((("..." if user else "") + at + rest)[:longest] + (f"{fragment or question}..." if fragment or question else ""))


def join_list(items: tuple[str, ...]) -> str:
    """Write a list into one parameter: by commas, or by line ends where an item holds a comma itself."""
    if any("," in item for item in items):
        return "\n".join(items) + ("\n" if len(items) == 1 else "")
    return ",".join(items)


def split_list(text: str) -> tuple[str, ...]:
    """Read what `join_list` wrote: lines if there is a line end in it, else comma separated; blanks trimmed."""
    parts = text.splitlines() if "\n" in text else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())


MOST_DIGITS = 19
"""Enough for every size there is; Python refuses to read thousands of them."""


def whole_number(text: str | None) -> int | None:
    """The number that `text` is, in decimal digits and nothing else; None for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None


_UNITS = ("KiB", "MiB", "GiB", "TiB")


def human(size: int) -> str:
    """`size` bytes in the largest binary unit it has one of: "512 B", "4.0 MiB", "15.2 GiB"."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    return f"{size / 1024**power:.1f} {_UNITS[power - 1]}"
