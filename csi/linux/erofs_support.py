"""What the node's kernel must have before an image can be mounted."""

from __future__ import annotations

from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux import processes

_MODPROBE_TIMEOUT = 20.0


def require_erofs(filesystems: Path = Path("/proc/filesystems")) -> None:
    """Return if the kernel knows EROFS, loading its module where needed; raises UnsupportedByNode saying what to install."""
    if _has_erofs(filesystems):
        return
    tried = processes.run(["modprobe", "erofs"], _MODPROBE_TIMEOUT)
    if not _has_erofs(filesystems):
        raise UnsupportedByNode(
            f"this node's kernel has no EROFS, and `modprobe erofs` did not help ({tried.output[:200] or 'it said nothing'}); "
            "use a kernel of 6.1 or newer with CONFIG_EROFS_FS, or load the module erofs at boot"
        )


def _has_erofs(filesystems: Path) -> bool:
    return "erofs" in filesystems.read_text().split()
