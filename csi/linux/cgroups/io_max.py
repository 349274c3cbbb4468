"""Throttles of cgroup version 2: the file io.max (Documentation/admin-guide/cgroup-v2.rst of the kernel)."""

from __future__ import annotations

from pathlib import Path

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import Count, holdable, lines_of, write_to
from csi.performance.limits import Rate

_LIMITS, _ENABLED, _DONE = "io.max", "cgroup.subtree_control", "io.stat"


class IoMax:
    """The unified hierarchy, mounted at `root`. A limit on a cgroup binds all below it."""

    shown = "IoMax"
    flat = False
    watched: tuple[str, ...] = (_LIMITS, _ENABLED)

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, pod: Path) -> None:
        """Enable the controller io from the root down to the pod's parent: kubelet and systemd do so only when they limit I/O themselves."""
        for folder in reversed(pod.relative_to(self.root).parents):
            _enable(self.root / folder)
        if pod.exists() and not (pod / _LIMITS).exists():
            raise UnsupportedByNode(f"{pod} has no {_LIMITS}: this node's kernel has no block throttling (CONFIG_BLK_DEV_THROTTLING)")

    def limit(self, cgroup: Path, device: str, rate: Rate) -> bool:
        """One line "major:minor rbps=... riops=..."; "max" removes a limit, others of the line stay."""
        wanted = Rate(_possible(holdable(rate.iops)), _possible(rate.bytes_per_second))
        if self.rate(cgroup, device) == wanted:
            return False
        words = f"rbps={_word(wanted.bytes_per_second)} riops={_word(wanted.iops)}"
        return write_to(cgroup / _LIMITS, f"{device} {words}")

    def rate(self, cgroup: Path, device: str) -> Rate:
        """From io.max."""
        found = _fields(cgroup / _LIMITS, device)
        return Rate(_number(found.get("riops")), _number(found.get("rbps")))

    def count(self, cgroup: Path, device: str) -> Count:
        """rios and rbytes of io.stat, the cgroups below included."""
        found = _fields(cgroup / _DONE, device)
        return Count(int(found.get("rios", 0)), int(found.get("rbytes", 0)))


def _enable(cgroup: Path) -> None:
    file = cgroup / _ENABLED
    if any("io" in words for words in lines_of(file)):
        return
    write_to(file, "+io")


def _fields(file: Path, device: str) -> dict[str, str]:
    for words in lines_of(file):
        if words and words[0] == device:
            return dict(word.split("=", 1) for word in words[1:] if "=" in word)
    return {}


def _possible(limit: int | None) -> int | None:
    """The kernel refuses limits of 1 (block/blk-throttle.c, tg_set_limit)."""
    return None if limit is None else max(2, limit)


def _word(limit: int | None) -> str:
    return "max" if limit is None else str(limit)


def _number(word: str | None) -> int | None:
    return None if word in (None, "max") else int(word)
