"""What kubelet asks of the mount table before it has a volume unstaged.

It looks for the mount that shows the staging path, and for all others with the same root on the same device.
While there is one whose path does not hold that of the staging path, counted from /plugins/kubernetes.io/ on,
it never calls NodeUnstageVolume.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_PLUGINS = "/plugins/kubernetes.io/"


@dataclass(frozen=True)
class _Line:
    """Fields 3 to 5 of proc_pid_mountinfo(5)."""

    device: str
    root: str
    target: str


def staging_path(kubelet: Path, volume_id: str, driver: str = "datacache.csi.io") -> Path:
    """Where kubelet, whose folder is `kubelet`, has a volume staged."""
    return (
        kubelet
        / "plugins/kubernetes.io/csi"
        / driver
        / hashlib.sha256(volume_id.encode()).hexdigest()
        / "globalmount"
    )


def foreign_refs(staging: Path) -> list[str]:
    """The mounts for which kubelet does not unstage what is at `staging`."""
    lines = [_line(text) for text in Path("/proc/self/mountinfo").read_text().splitlines()]
    shown = next(
        line
        for line in reversed(lines)
        if staging == Path(line.target) or Path(line.target) in staging.parents
    )
    root = str(Path(shown.root) / staging.relative_to(shown.target))
    others = [
        line.target
        for line in lines
        if line is not shown and (line.device, line.root) == (shown.device, root)
    ]
    text = str(staging)
    own = text[text.index(_PLUGINS) :]
    return [target for target in others if own not in target]


def _line(text: str) -> _Line:
    _, _, device, root, target, *_ = text.split(" ")
    return _Line(device, _plain(root), _plain(target))


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
