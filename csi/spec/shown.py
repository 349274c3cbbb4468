"""How messages quote what a caller gave."""

from __future__ import annotations


def shown(value: str, longest: int = 60) -> str:
    """`value` in quotes, cut after `longest` characters, without what a URL may carry in secret: user info ('@'), query ('?'), fragment ('#')."""
    address, question, _ = value.partition("?")
    user, at, rest = address.rpartition("@")
    rest, fragment, _ = rest.partition("#")
    return repr((("..." if user else "") + at + rest)[:longest] + (f"{fragment or question}..." if fragment or question else ""))
