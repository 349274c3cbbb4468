"""Parsing and formatting of small values written by people: numbers, sizes, lists and booleans."""

from __future__ import annotations

import re

from csi.errors import InvalidParameter


def redact(value: str, max_length: int = 60) -> str:
    """Quote `value` for a message, without the parts of a URL that may be secret.

    User info (before '@'), query ('?') and fragment ('#') become "..."; the rest is cut after `max_length`
    characters.
    """
    address, question, _ = value.partition("?")
    user, at_sign, location = address.rpartition("@")
    location, fragment, _ = location.partition("#")
    return repr(
        (("..." if user else "") + at_sign + location)[:max_length]
        + (f"{fragment or question}..." if fragment or question else "")
    )


def join_list(items: tuple[str, ...]) -> str:
    """Join `items` into one parameter: by commas, or by line ends if an item contains a comma."""
    if any("," in item for item in items):
        return "\n".join(items) + ("\n" if len(items) == 1 else "")
    return ",".join(items)


def split_list(text: str) -> tuple[str, ...]:
    """Split a list written by `join_list`: by lines if there is a line end, else by commas.

    Blanks are trimmed.
    """
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
"""Enough for every possible size (2**63 has 19 digits); Python refuses to parse thousands of digits."""


def parse_decimal(text: str | None) -> int | None:
    """Parse decimal ASCII digits into an integer; return None for any other text."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


_UNITS = ("KiB", "MiB", "GiB", "TiB")


def format_size(size: int) -> str:
    """Format `size` bytes in the largest fitting binary unit: "512 B", "4.0 MiB", "15.2 GiB"."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    return f"{size / 1024**power:.1f} {_UNITS[power - 1]}"


def integer_value(key: str, text: str, low: int, high: int) -> int:
    """Parse `text` as a decimal integer from `low` to `high`.

    Raises InvalidParameter naming `key` and the range.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise InvalidParameter(f"{key} is {redact(text)}; it is a whole number from {low} to {high}")
    return int(text)


def boolean_value(key: str, text: str) -> bool:
    """Parse "true" or "false" in any case; raises InvalidParameter naming `key`."""
    if text.lower() not in ("true", "false"):
        raise InvalidParameter(f'{key} is {redact(text)}; it is "true" or "false"')
    return text.lower() == "true"


def parse_quantity(text: str) -> int:
    """Parse a Kubernetes quantity ("500Gi", "2T", "1048576") into bytes; raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T|Ki|Mi|Gi|Ti|)", text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it as 500Gi or 2T")
    return int(float(match[1]) * _UNIT_FACTORS[match[2]])


def quantity_value(key: str, text: str, low: int, high: int, unit: str = "") -> int:
    """Parse a Kubernetes quantity ("500Mi", "2G", "1048576") from `low` to `high` into bytes.

    `unit` ("Gi") applies to a bare number. Raises InvalidParameter naming `key` and the range.
    """
    try:
        number = parse_quantity(text + unit if text[-1:].isdigit() else text) if len(text) < 20 else -1
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise InvalidParameter(
            f"{key} is {redact(text)}; it is {low} to {high} bytes, "
            f"as 500Mi or 2G (a bare number is in {unit or 'bytes'})"
        )
    return number
