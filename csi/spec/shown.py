"""How messages quote what a caller gave."""

from __future__ import annotations


def shown(value: str, longest: int = 60) -> str:
    """`value` in quotes, cut after `longest` characters, without what a URL may carry in secret: user info ('@') and query ('?')."""
    address, question, _ = value.partition("?")
    user, at, rest = address.rpartition("@")
    return repr((("..." if user else "") + at + rest)[:longest] + ("?..." if question else ""))
