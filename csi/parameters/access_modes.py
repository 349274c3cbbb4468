"""Access modes of a read-only cache.

Writer modes are refused, or mounted read-only if the volume asks for that.
"""

from __future__ import annotations

import enum

from csi.errors import InvalidParameter


class AccessMode(enum.Enum):
    """The access modes of CSI by their number."""

    UNKNOWN = 0
    SINGLE_NODE_WRITER = 1
    SINGLE_NODE_READER_ONLY = 2
    MULTI_NODE_READER_ONLY = 3
    MULTI_NODE_SINGLE_WRITER = 4
    MULTI_NODE_MULTI_WRITER = 5
    SINGLE_NODE_SINGLE_WRITER = 6
    SINGLE_NODE_MULTI_WRITER = 7

    @property
    def csi_name(self) -> str:
        """CSI's own name of the mode, which volume records store."""
        return _NAMES[self]

    @property
    def is_reader(self) -> bool:
        """Whether the mode never writes."""
        return self in (AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY)


_NAMES = {
    AccessMode.UNKNOWN: "UNKNOWN",
    AccessMode.SINGLE_NODE_WRITER: "SINGLE_NODE_WRITER",
    AccessMode.SINGLE_NODE_READER_ONLY: "SINGLE_NODE_READER_ONLY",
    AccessMode.MULTI_NODE_READER_ONLY: "MULTI_NODE_READER_ONLY",
    AccessMode.MULTI_NODE_SINGLE_WRITER: "MULTI_NODE_SINGLE_WRITER",
    AccessMode.MULTI_NODE_MULTI_WRITER: "MULTI_NODE_MULTI_WRITER",
    AccessMode.SINGLE_NODE_SINGLE_WRITER: "SINGLE_NODE_SINGLE_WRITER",
    AccessMode.SINGLE_NODE_MULTI_WRITER: "SINGLE_NODE_MULTI_WRITER",
}
MODES = {name: mode for mode, name in _NAMES.items()}
"""Access modes by CSI's own names."""


def parse_access_mode(number: int) -> AccessMode:
    """Return the access mode of CSI's `number`; raises InvalidParameter if CSI 1.12 has no such mode."""
    try:
        return AccessMode(number)
    except ValueError as error:
        raise InvalidParameter(
            f"access mode {number} is unknown to CSI 1.12; a data cache takes ReadOnlyMany (ROX)"
        ) from error


def check_access_mode(mode: AccessMode, downgrade_writers: bool) -> None:
    """Raise InvalidParameter unless `mode` reads only, or `downgrade_writers` accepts writer modes."""
    if mode is AccessMode.UNKNOWN:
        raise InvalidParameter("the access mode is missing; a data cache takes ReadOnlyMany (ROX)")
    if not mode.is_reader and not downgrade_writers:
        raise InvalidParameter(
            f"access mode {mode.csi_name} writes, but a data cache is always read-only; "
            "use ReadOnlyMany (ROX) in the PVC, or set the parameter "
            "writerAccessModes: downgrade in the StorageClass to mount it read-only anyway"
        )
