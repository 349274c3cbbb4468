"""What performance a volume was given: the keys as they were asked, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from csi.errors import InvalidParameter
from csi.spec.shown import shown

LEVELS = ("PL0", "PL1", "PL2", "PL3", "AutoPL")
# The ceiling of an ESSD AutoPL disk with bursting (Alibaba Cloud, "ESSD AutoPL disks").
MAX_IOPS = 1_000_000
GIB = 2**30
KEYS = ("performanceLevel", "provisionedIops", "burstingEnabled")


def whole_gib(content_bytes: int) -> int:
    """The bytes of the smallest disk that holds the content: whole GiB, at least one, as the ESSD formulae count."""
    return max(1, -(-content_bytes // GIB)) * GIB


@dataclass(frozen=True)
class Performance:
    """The performance keys of a volume; None where a key was not given, which means no limit by it.

    `provisioned_iops` is in I/Os per second, on top of the level's baseline.
    """

    level: str | None = None
    provisioned_iops: int | None = None
    bursting: bool | None = None

    def to_context(self) -> dict[str, str]:
        """The keys that were given, as parameters."""
        values = {
            "performanceLevel": self.level,
            "provisionedIops": None if self.provisioned_iops is None else str(self.provisioned_iops),
            "burstingEnabled": None if self.bursting is None else str(self.bursting).lower(),
        }
        return {key: value for key, value in values.items() if value is not None}

    def changed(self, parameters: Mapping[str, str]) -> Performance:
        """This performance with `parameters` (canonical keys) laid over it; raises InvalidParameter naming the key."""
        new = self
        if "performanceLevel" in parameters:
            new = replace(new, level=_level(parameters["performanceLevel"]))
        if "provisionedIops" in parameters:
            new = replace(new, provisioned_iops=_iops(parameters["provisionedIops"]))
        if "burstingEnabled" in parameters:
            new = replace(new, bursting=boolean("burstingEnabled", parameters["burstingEnabled"]))
        return new


def _level(text: str) -> str:
    known = {level.lower(): level for level in LEVELS}
    if text.lower() not in known:
        raise InvalidParameter(f"performanceLevel is {shown(text)}; it is one of {', '.join(LEVELS)}")
    return known[text.lower()]


def _iops(text: str) -> int:
    return integer("provisionedIops", text, 1, MAX_IOPS)


def integer(key: str, text: str, low: int, high: int) -> int:
    """`text` as a decimal integer from `low` to `high`; raises InvalidParameter naming `key` and the range."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise InvalidParameter(f"{key} is {shown(text)}; it is a whole number from {low} to {high}")
    return int(text)


def boolean(key: str, text: str) -> bool:
    """`text` as "true" or "false" in any case; raises InvalidParameter naming `key`."""
    if text.lower() not in ("true", "false"):
        raise InvalidParameter(f'{key} is {shown(text)}; it is "true" or "false"')
    return text.lower() == "true"
