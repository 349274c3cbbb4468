"""Parameters of the five calls, as SDKs and the command line of Alibaba Cloud spell them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller_plugin.operator.openapi.refusals import invalid_parameter, missing_parameter

_OPTION = "DataSource.Options."
# "#3#key": some SDKs prefix a key with its length.
_COUNTED = re.compile(r"#(\d{1,4})#(.+)", re.DOTALL)
_NUMBERED = re.compile(r"(?P<name>Tag|DataCacheId)\.(?P<number>\d{1,4})(?:\.(?P<part>Key|Value))?")
MAX_IDS, MAX_TAGS, MAX_NAME_LENGTH, MAX_TOKEN_LENGTH = 100, 20, 128, 64
# Values that SDKs send for parameters that are not set.
_UNSET = ("", "None", "null")


@dataclass(frozen=True)
class ApiParameters:
    """Parameters of one call, by their names on the wire."""

    values: Mapping[str, str]

    def get_text(self, name: str, max_length: int = 1024) -> str:
        """Return a text, "" if not given. Raises ApiRefusal if it is longer than `max_length`."""
        text = self.values.get(name, "").strip()
        if len(text) > max_length:
            raise invalid_parameter(name, f"it has more than {max_length} characters")
        return "" if text in _UNSET else text

    def require_text(self, name: str) -> str:
        """Return a text that must be given. Raises ApiRefusal."""
        text = self.get_text(name)
        if not text:
            raise missing_parameter(name)
        return text

    def get_number(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number, None if not given. Raises ApiRefusal."""
        text = self.get_text(name)
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and low <= int(text[:12]) <= high and len(text) <= 12):
            raise invalid_parameter(name, f"give a whole number from {low} to {high}")
        return int(text)

    @property
    def options(self) -> dict[str, str]:
        """Options of the data source by their keys, "" for one that was not set.

        A name is `DataSource.Options.key`, or `DataSource.Options.#3#key` with the key's length.
        """
        options: dict[str, str] = {}
        for name, value in self.values.items():
            if name.startswith(_OPTION):
                key = name[len(_OPTION) :]
                counted = _COUNTED.fullmatch(key)
                options[counted[2] if counted and len(counted[2]) == int(counted[1]) else key] = (
                    "" if value.strip() in _UNSET else value
                )
        return options

    @property
    def tags(self) -> dict[str, str]:
        """Tags, with an empty value for a tag without one. Raises ApiRefusal."""
        parts: dict[int, dict[str, str]] = {}
        for match, value in self._list_numbered("Tag"):
            parts.setdefault(int(match["number"]), {})[match["part"] or ""] = value
        if len(parts) > MAX_TAGS:
            raise invalid_parameter("Tag", f"{len(parts)} are given; give at most {MAX_TAGS}")
        for number, part in parts.items():
            if not part.get("Key") or max(map(len, part.values())) > 128:
                raise invalid_parameter(
                    f"Tag.{number}", "give it a Key, and no Key or Value of more than 128 characters"
                )
        return {part["Key"]: part.get("Value", "") for _, part in sorted(parts.items())}

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of `DataCacheId.1` and so on. Raises ApiRefusal."""
        ids = [
            value
            for match, value in sorted(
                self._list_numbered("DataCacheId"), key=lambda pair: int(pair[0]["number"])
            )
        ]
        ids += filter(None, [self.get_text("DataCacheId")])
        if len(ids) > MAX_IDS:
            raise invalid_parameter("DataCacheId", f"{len(ids)} are given; give at most {MAX_IDS}")
        return tuple(dict.fromkeys(ids))

    def _list_numbered(self, kind: str) -> list[tuple[re.Match[str], str]]:
        matches = ((_NUMBERED.fullmatch(name), value) for name, value in self.values.items())
        return [(match, value) for match, value in matches if match and match["name"] == kind]
