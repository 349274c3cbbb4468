"""How messages quote what a caller gave."""

from __future__ import annotations

import re


def shown(value: str, longest: int = 60) -> str:
    """`value` in quotes, cut after `longest` characters, without what a URL may carry in secret: user info ('@'), query ('?'), fragment ('#')."""
    address = re.split("[?#]", value, maxsplit=1)[0]
    user, at, rest = address.rpartition("@")
    return repr((("..." if user else "") + at + rest)[:longest] + (f"{value[len(address)]}..." if address != value else ""))
