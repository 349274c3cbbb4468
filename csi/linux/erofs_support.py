"""Check that the node's kernel can mount EROFS images."""

from __future__ import annotations

from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux import processes

_MODPROBE_TIMEOUT = 20.0


def require_erofs(filesystems: Path = Path("/proc/filesystems")) -> None:
    """Load the kernel module for EROFS if needed.

    Raises UnsupportedByNode with what to install if the kernel has none.
    """
    if _has_erofs(filesystems):
        return
    modprobe = processes.run(["modprobe", "erofs"], _MODPROBE_TIMEOUT)
    if not _has_erofs(filesystems):
        raise UnsupportedByNode(
            "this node's kernel has no EROFS, and `modprobe erofs` did not help "
            f"({modprobe.output[:200] or 'no output'}); "
            "use a kernel of 6.1 or newer with CONFIG_EROFS_FS, or load the module erofs at boot"
        )


def _has_erofs(filesystems: Path) -> bool:
    return "erofs" in filesystems.read_text().split()
