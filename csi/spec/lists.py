"""Lists in one parameter: by commas, or one a line."""

from __future__ import annotations


def join_list(items: tuple[str, ...]) -> str:
    """Write a list into one parameter: by commas, or by line ends where an item holds a comma itself."""
    if any("," in item for item in items):
        return "\n".join(items) + ("\n" if len(items) == 1 else "")
    return ",".join(items)


def split_list(text: str) -> tuple[str, ...]:
    """Read what `join_list` wrote: lines if there is a line end in it, else comma separated; blanks trimmed."""
    parts = text.splitlines() if "\n" in text else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())
