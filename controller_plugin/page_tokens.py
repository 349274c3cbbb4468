"""Tokens of ListVolumes: the id of the last volume of a page, so that no change shifts or repeats others."""

from __future__ import annotations

import base64
import binascii

from csi.errors import InvalidToken

_TOKEN_PREFIX = "after:"


def encode_page_token(volume_id: str) -> str:
    """Return the token of the page after `volume_id`."""
    return base64.urlsafe_b64encode((_TOKEN_PREFIX + volume_id).encode()).decode()


def decode_page_token(token: str) -> str:
    """Return the id in a token, "" for an empty one; raises InvalidToken for one of another origin."""
    if not token:
        return ""
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = ""
    if not text.startswith(_TOKEN_PREFIX):
        raise InvalidToken(
            f"this controller did not issue starting_token {token[:80]!r}; start again without it"
        )
    return text.removeprefix(_TOKEN_PREFIX)
