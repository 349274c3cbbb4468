"""The parameters of the five calls, as SDKs and the command line of Alibaba Cloud spell them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller_plugin.operator.openapi.refusals import invalid_parameter, missing_parameter

_OPTION = "DataSource.Options."
_COUNTED = re.compile(r"#(\d{1,4})#(.+)", re.DOTALL)
_NUMBERED = re.compile(r"(?P<name>Tag|DataCacheId)\.(?P<number>\d{1,4})(?:\.(?P<part>Key|Value))?")
MAX_IDS, MAX_TAGS, MAX_NAME_LENGTH, MAX_TOKEN_LENGTH = 100, 20, 128, 64
# What an SDK sends for a value that was not set.
_UNSET = ("", "None", "null")


@dataclass(frozen=True)
class ApiParameters:
    """The parameters of one call, by the names on the wire."""

    values: Mapping[str, str]

    def get_text(self, name: str, max_length: int = 1024) -> str:
        """A text, "" where it is not given. Raises Refusal where it is longer than `max_length`."""
        found = self.values.get(name, "").strip()
        if len(found) > max_length:
            raise invalid_parameter(name, f"it has more than {max_length} characters")
        return "" if found in _UNSET else found

    def require_text(self, name: str) -> str:
        """A text that has to be given. Raises Refusal."""
        found = self.get_text(name)
        if not found:
            raise missing_parameter(name)
        return found

    def get_number(self, name: str, low: int, high: int) -> int | None:
        """A whole number, None where it is not given. Raises Refusal."""
        found = self.get_text(name)
        if not found:
            return None
        if not (found.isascii() and found.isdigit() and low <= int(found[:12]) <= high and len(found) <= 12):
            raise invalid_parameter(name, f"it is a whole number from {low} to {high}")
        return int(found)

    @property
    def options(self) -> dict[str, str]:
        """The options of the data source, by their keys: `DataSource.Options.key`, or `DataSource.Options.#3#key` with the key's length; "" for
        one that was not set."""
        found: dict[str, str] = {}
        for name, value in self.values.items():
            if name.startswith(_OPTION):
                key = name[len(_OPTION) :]
                counted = _COUNTED.fullmatch(key)
                found[counted[2] if counted and len(counted[2]) == int(counted[1]) else key] = (
                    "" if value.strip() in _UNSET else value
                )
        return found

    @property
    def tags(self) -> dict[str, str]:
        """The tags, an empty value for one without. Raises Refusal."""
        parts: dict[int, dict[str, str]] = {}
        for found, value in self._list_numbered("Tag"):
            parts.setdefault(int(found["number"]), {})[found["part"] or ""] = value
        if len(parts) > MAX_TAGS:
            raise invalid_parameter("Tag", f"there are {len(parts)} of them; at most {MAX_TAGS} can be")
        for number, part in parts.items():
            if not part.get("Key") or max(map(len, part.values())) > 128:
                raise invalid_parameter(
                    f"Tag.{number}", "it has a Key, and neither Key nor Value has more than 128 characters"
                )
        return {part["Key"]: part.get("Value", "") for _, part in sorted(parts.items())}

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of `DataCacheId.1` and so on. Raises Refusal."""
        found = [
            value
            for match, value in sorted(
                self._list_numbered("DataCacheId"), key=lambda pair: int(pair[0]["number"])
            )
        ]
        found += filter(None, [self.get_text("DataCacheId")])
        if len(found) > MAX_IDS:
            raise invalid_parameter(
                "DataCacheId", f"there are {len(found)} of them; at most {MAX_IDS} can be"
            )
        return tuple(dict.fromkeys(found))

    def _list_numbered(self, kind: str) -> list[tuple[re.Match[str], str]]:
        matches = ((_NUMBERED.fullmatch(name), value) for name, value in self.values.items())
        return [(match, value) for match, value in matches if match and match["name"] == kind]
