"""Access modes: a cache is read-only, so writer modes are refused or, where asked, mounted read-only all the same."""

from __future__ import annotations

import enum

from csi.errors import InvalidParameter


class AccessMode(enum.Enum):
    """CSI's access modes by their number."""

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
        """CSI's own name of the mode, as records of volumes keep it."""
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
"""The modes by CSI's own names."""


def parse_access_mode(number: int) -> AccessMode:
    """The mode of CSI's number; raises InvalidParameter for one that CSI 1.12 does not have."""
    try:
        return AccessMode(number)
    except ValueError as error:
        raise InvalidParameter(
            f"access mode {number} is none that CSI 1.12 knows; a data cache takes ReadOnlyMany (ROX)"
        ) from error


def check_access_mode(mode: AccessMode, downgrade_writers: bool) -> None:
    """Raise InvalidParameter unless `mode` can be had: any reader mode, and writer modes where the volume downgrades them."""
    if mode is AccessMode.UNKNOWN:
        raise InvalidParameter("the access mode is missing; a data cache takes ReadOnlyMany (ROX)")
    if not mode.is_reader and not downgrade_writers:
        raise InvalidParameter(
            f"access mode {mode.csi_name} writes, but a data cache is always read-only; use ReadOnlyMany (ROX) in the PVC, or set the parameter "
            "writerAccessModes: downgrade in the StorageClass to mount it read-only all the same"
        )
