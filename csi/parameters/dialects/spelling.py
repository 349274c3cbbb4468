"""Canonical names of keys as users spell them.

Unknown keys and credentials are refused by name, without the value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from csi.errors import InvalidParameter
from csi.parameters.dialects.keys import Key
from csi.values import redact

FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Prefixes of keys that Kubernetes itself adds to parameters and contexts."""
# Common names of credentials, in addition to those that sources read from Secrets.
_CREDENTIALS = (
    "hftoken",
    "password",
    "secretkey",
    "accesskey",
    "sessiontoken",
    "accesskeysecret",
    "authorization",
)
# Characters.
_MAX_VALUE = 4096
# Lists of sources, URLs (1,000) and checksums are longer than other values.
_MAX_VALUES = {"sources": 1 << 18, "url": 1 << 18, "sha256": 1 << 17}
# A line end in these makes the value a list of lines (`csi.values.split_list`), so it must not be trimmed
# away.
_UNTRIMMED = ("allowPatterns", "ignorePatterns", "url")


class Spelling:
    """Lookup of canonical names by `keys` in any case and by their aliases.

    `secret_names` are credentials, which belong in Secrets.
    """

    def __init__(self, keys: Iterable[Key], secret_names: Iterable[str]) -> None:
        table = list(keys)
        self.names = {key.name.lower(): key.name for key in table} | {
            alias.lower(): key.name for key in table for alias in key.aliases
        }
        self.secret_names = frozenset(name.lower() for name in secret_names) | frozenset(_CREDENTIALS)

    def canonicalize(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """Return `parameters` with canonical keys and trimmed values, without Kubernetes' own keys.

        Raises InvalidParameter for an unknown key, a credential, or a key given twice.
        """
        values: dict[str, str] = {}
        for key, value in parameters.items():
            if key.startswith(FOREIGN_PREFIXES):
                continue
            name = self._get_name(key)
            if name in values:
                raise InvalidParameter(f"{name} is given twice (as {redact(key)} too); keep one")
            values[name] = _check_value(name, value)
        return values

    def find_name(self, key: str) -> str | None:
        """Return the canonical name of `key`, None if it is unknown."""
        return self.names.get(key.lower())

    def _get_name(self, key: str) -> str:
        lower = key.lower()
        if lower in self.names:
            return self.names[lower]
        if lower in self.secret_names:
            raise InvalidParameter(
                f"{key} is a credential and does not belong in parameters or volume attributes; "
                "put it into a Secret and name that Secret"
            )
        near = difflib.get_close_matches(lower, self.names, 1, 0.6)
        hint = (
            f"; did you mean {self.names[near[0]]}?"
            if near
            else f"; known are {', '.join(dict.fromkeys(self.names.values()))}"
        )
        raise InvalidParameter(f"unknown parameter {redact(key, 80)}{hint}")


def _check_value(name: str, value: str) -> str:
    max_length = _MAX_VALUES.get(name, _MAX_VALUE)
    if len(value) > max_length or "\0" in value:
        raise InvalidParameter(f"{name} is over {max_length} characters or contains a NUL; shorten it")
    return value if name in _UNTRIMMED else value.strip()
