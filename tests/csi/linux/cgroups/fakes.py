"""A cgroup hierarchy of plain folders, with limits and counters in a file of each; test_hierarchies.py proves
it like the real ones."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csi.errors import UnsupportedByNode
from csi.linux.cgroups.hierarchy import CgroupHierarchy, ReadCount
from csi.performance.limits import UNLIMITED, Rate

STATE = "throttle.json"


class FakeHierarchy(CgroupHierarchy):
    """Flat as version 1 unless told otherwise.

    `writes` counts the limits written; `refusal` makes the kernel refuse them.
    """

    display_name = "FakeHierarchy"
    limit_files: tuple[str, ...] = (STATE,)

    def __init__(self, root: Path, flat: bool = True) -> None:
        self.root, self.is_flat = root, flat
        self.writes = 0
        self._guard = threading.Lock()
        self.refusal = ""
        root.mkdir(parents=True, exist_ok=True)

    def enable_throttling(self, pod: Path) -> None:
        if self.refusal:
            raise UnsupportedByNode(self.refusal)

    def set_limit(self, cgroup: Path, device: str, rate: Rate) -> bool:
        with self._guard:
            if not cgroup.exists() or self.read_limit(cgroup, device) == rate:
                return False
            state = _state(cgroup)
            state["limits"][device] = asdict(rate)
            _keep(cgroup, state)
            self.writes += 1
            return True

    def read_limit(self, cgroup: Path, device: str) -> Rate:
        kept = _state(cgroup)["limits"].get(device)
        return Rate(**kept) if kept else UNLIMITED

    def limited(self, cgroup: Path) -> list[str]:
        """Return the devices for which the cgroup has a limit."""
        return [device for device in _state(cgroup)["limits"] if self.read_limit(cgroup, device) != UNLIMITED]

    def read_count(self, cgroup: Path, device: str) -> ReadCount:
        kept = _state(cgroup)["counts"].get(device)
        return ReadCount(**kept) if kept else ReadCount()

    def read(self, cgroup: Path, device: str, ios: int, size: int = 4096) -> None:
        """Have a process of the cgroup read."""
        with self._guard:
            state = _state(cgroup)
            state["counts"][device] = asdict(self.read_count(cgroup, device) + ReadCount(ios, ios * size))
            _keep(cgroup, state)


def _state(cgroup: Path) -> dict[str, Any]:
    try:
        return json.loads((cgroup / STATE).read_text())
    except FileNotFoundError:
        return {"limits": {}, "counts": {}}


def _keep(cgroup: Path, state: dict[str, Any]) -> None:
    temporary = cgroup / ".new"
    temporary.write_text(json.dumps(state))
    temporary.rename(cgroup / STATE)
