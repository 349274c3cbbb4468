"""Small values from outside: numbers, sizes, lists and booleans as people write them, and how messages show them."""

from __future__ import annotations

import re

from csi.errors import InvalidParameter


def redact(value: str, max_length: int = 60) -> str:
    """`value` in quotes, cut after `max_length` characters, without what a URL may carry in secret: user info ('@'), query ('?'), fragment ('#')."""
    address, question, _ = value.partition("?")
    user, at, rest = address.rpartition("@")
    rest, fragment, _ = rest.partition("#")
    return repr(
        (("..." if user else "") + at + rest)[:max_length]
        + (f"{fragment or question}..." if fragment or question else "")
    )


def join_list(items: tuple[str, ...]) -> str:
    """Write a list into one parameter: by commas, or by line ends where an item holds a comma itself."""
    if any("," in item for item in items):
        return "\n".join(items) + ("\n" if len(items) == 1 else "")
    return ",".join(items)


def split_list(text: str) -> tuple[str, ...]:
    """Read what `join_list` wrote: lines if there is a line end in it, else comma separated; blanks trimmed."""
    parts = text.splitlines() if "\n" in text else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())


_UNIT_FACTORS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
MAX_DIGITS = 19
"""Enough for every size there is; Python refuses to read thousands of them."""


def parse_decimal(text: str | None) -> int | None:
    """The number that `text` is, in decimal digits and nothing else; None for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


_UNITS = ("KiB", "MiB", "GiB", "TiB")


def format_size(size: int) -> str:
    """`size` bytes in the largest binary unit it has one of: "512 B", "4.0 MiB", "15.2 GiB"."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    return f"{size / 1024**power:.1f} {_UNITS[power - 1]}"


def integer_value(key: str, text: str, low: int, high: int) -> int:
    """`text` as a decimal integer from `low` to `high`; raises InvalidParameter naming `key` and the range."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise InvalidParameter(f"{key} is {redact(text)}; it is a whole number from {low} to {high}")
    return int(text)


def boolean_value(key: str, text: str) -> bool:
    """`text` as "true" or "false" in any case; raises InvalidParameter naming `key`."""
    if text.lower() not in ("true", "false"):
        raise InvalidParameter(f'{key} is {redact(text)}; it is "true" or "false"')
    return text.lower() == "true"


def parse_quantity(text: str) -> int:
    """Parse a Kubernetes quantity ("500Gi", "2T", "1048576") into bytes; raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T|Ki|Mi|Gi|Ti|)", text)
    if not match:
        raise ValueError(f"{text!r} is no size; write it as 500Gi or 2T")
    return int(float(match[1]) * _UNIT_FACTORS[match[2]])


def quantity_value(key: str, text: str, low: int, high: int, unit: str = "") -> int:
    """Bytes from a Kubernetes quantity ("500Mi", "2G", "1048576"), `low` to `high`; `unit` ("Gi") is that of a bare number.

    Raises InvalidParameter naming `key` and the range.
    """
    try:
        number = parse_quantity(text + unit if text[-1:].isdigit() else text) if len(text) < 20 else -1
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise InvalidParameter(
            f"{key} is {redact(text)}; it is {low} to {high} bytes, as 500Mi or 2G (a bare number is in {unit or 'bytes'})"
        )
    return number
