"""Keys as users spell them -> their canonical names. Unknown keys and credentials are refused by name, values never repeated."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from csi.errors import InvalidParameter
from csi.parameters.dialects.keys import Key
from csi.values import redact

FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Kubernetes adds keys that begin so to parameters and contexts by itself."""
# Names that credentials have elsewhere, beside those that a source reads from its Secret.
_CREDENTIALS = (
    "hftoken",
    "password",
    "secretkey",
    "accesskey",
    "sessiontoken",
    "accesskeysecret",
    "authorization",
)
_MAX_VALUE = 4096
_MAX_VALUES = {"sources": 1 << 18, "url": 1 << 18, "sha256": 1 << 17}
_UNTRIMMED = ("allowPatterns", "ignorePatterns", "url")


class Spelling:
    """Knows `keys` in any case and by their aliases; `secret_names` are credentials, which belong into Secrets."""

    def __init__(self, keys: Iterable[Key], secret_names: Iterable[str]) -> None:
        table = list(keys)
        self.names = {key.name.lower(): key.name for key in table} | {
            alias.lower(): key.name for key in table for alias in key.aliases
        }
        self.secret_names = frozenset(name.lower() for name in secret_names) | frozenset(_CREDENTIALS)

    def canonicalize(self, parameters: Mapping[str, str]) -> dict[str, str]:
        """`parameters` with every key in its canonical spelling, values trimmed, Kubernetes' own keys left out; raises InvalidParameter."""
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
        """The canonical name of `key`, None where it is not known."""
        return self.names.get(key.lower())

    def _get_name(self, key: str) -> str:
        lower = key.lower()
        if lower in self.names:
            return self.names[lower]
        if lower in self.secret_names:
            raise InvalidParameter(
                f"{key} is a credential and does not belong into parameters or volume attributes; put it into a Secret and name that Secret"
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
        raise InvalidParameter(f"{name} is over {max_length} characters or holds a NUL; shorten it")
    return value if name in _UNTRIMMED else value.strip()
