"""Mount options of a StorageClass or PV whose source is not a file server.

Generic ones are ignored, others refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from csi.errors import InvalidParameter
from csi.values import redact

_GENERIC = frozenset(("ro", "noatime", "nodiratime", "relatime", "nosuid", "nodev"))


def refuse_mount_flags(flags: Sequence[str], noun: str) -> None:
    """Raise InvalidParameter for a flag that has no meaning for `noun`.

    The message names the option without its value.
    """
    for flag in flags:
        if flag not in _GENERIC:
            raise InvalidParameter(
                f"mountOptions has {redact(flag.partition('=')[0])}, "
                f"which means nothing for {noun}; remove it"
            )
