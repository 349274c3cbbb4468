"""The parameters of the five calls, as SDKs and the command line of Alibaba Cloud spell them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller_plugin.operator.openapi.refusals import invalid, missing

_OPTION = "DataSource.Options."
_COUNTED = re.compile(r"#(\d{1,4})#(.+)", re.DOTALL)
_NUMBERED = re.compile(r"(?P<name>Tag|DataCacheId)\.(?P<number>\d{1,4})(?:\.(?P<part>Key|Value))?")
MOST_IDS, MOST_TAGS, MOST_NAME, MOST_TOKEN = 100, 20, 128, 64
# What an SDK sends for a value that was not set.
_UNSET = ("", "None", "null")


@dataclass(frozen=True)
class Parameters:
    """The parameters of one call, by the names on the wire."""

    given: Mapping[str, str]

    def text(self, name: str, most: int = 1024) -> str:
        """A text, "" where it is not given. Raises Refusal where it is longer than `most`."""
        found = self.given.get(name, "").strip()
        if len(found) > most:
            raise invalid(name, f"it has more than {most} characters")
        return "" if found in _UNSET else found

    def needed(self, name: str) -> str:
        """A text that has to be given. Raises Refusal."""
        found = self.text(name)
        if not found:
            raise missing(name)
        return found

    def number(self, name: str, least: int, most: int) -> int | None:
        """A whole number, None where it is not given. Raises Refusal."""
        found = self.text(name)
        if not found:
            return None
        if not (found.isascii() and found.isdigit() and least <= int(found[:12]) <= most and len(found) <= 12):
            raise invalid(name, f"it is a whole number from {least} to {most}")
        return int(found)

    @property
    def options(self) -> dict[str, str]:
        """The options of the data source, by their keys: `DataSource.Options.key`, or `DataSource.Options.#3#key` with the key's length; "" for
        one that was not set."""
        found: dict[str, str] = {}
        for name, value in self.given.items():
            if name.startswith(_OPTION):
                key = name[len(_OPTION) :]
                counted = _COUNTED.fullmatch(key)
                found[counted[2] if counted and len(counted[2]) == int(counted[1]) else key] = "" if value.strip() in _UNSET else value
        return found

    @property
    def tags(self) -> dict[str, str]:
        """The tags, an empty value for one without. Raises Refusal."""
        parts: dict[int, dict[str, str]] = {}
        for found, value in self._numbered("Tag"):
            parts.setdefault(int(found["number"]), {})[found["part"] or ""] = value
        if len(parts) > MOST_TAGS:
            raise invalid("Tag", f"there are {len(parts)} of them; at most {MOST_TAGS} can be")
        for number, part in parts.items():
            if not part.get("Key") or max(map(len, part.values())) > 128:
                raise invalid(f"Tag.{number}", "it has a Key, and neither Key nor Value has more than 128 characters")
        return {part["Key"]: part.get("Value", "") for _, part in sorted(parts.items())}

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of `DataCacheId.1` and so on. Raises Refusal."""
        found = [value for match, value in sorted(self._numbered("DataCacheId"), key=lambda pair: int(pair[0]["number"]))]
        found += filter(None, [self.text("DataCacheId")])
        if len(found) > MOST_IDS:
            raise invalid("DataCacheId", f"there are {len(found)} of them; at most {MOST_IDS} can be")
        return tuple(dict.fromkeys(found))

    def _numbered(self, kind: str) -> list[tuple[re.Match[str], str]]:
        matches = ((_NUMBERED.fullmatch(name), value) for name, value in self.given.items())
        return [(match, value) for match, value in matches if match and match["name"] == kind]
