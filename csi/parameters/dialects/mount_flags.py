"""Mount options of a StorageClass or PV where the source is no file server: the generic ones mean nothing, others are a mistake."""

from __future__ import annotations

from collections.abc import Sequence

from csi.errors import InvalidParameter
from csi.values import redact

_GENERIC = frozenset(("ro", "noatime", "nodiratime", "relatime", "nosuid", "nodev"))


def refuse_mount_flags(flags: Sequence[str], noun: str) -> None:
    """Raise InvalidParameter, naming the option without its value, for a flag that means nothing for `noun`."""
    for flag in flags:
        if flag not in _GENERIC:
            raise InvalidParameter(
                f"mountOptions has {redact(flag.partition('=')[0])}, which means nothing for {noun}; remove it"
            )
