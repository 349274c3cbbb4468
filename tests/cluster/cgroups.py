"""A cgroup of one name in every hierarchy of this machine (version 1, and the empty one of version 2
beside it): what a lab runs in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_PREFIX = "datacache-cluster-"
_OF_EVERY_MOUNT = "rw ro relatime nosuid nodev noexec xattr clone_children".split()
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy; `kind` (cgroup or cgroup2) and `options` mount it anew."""

    place: Path
    kind: str
    options: str


def hierarchies() -> list[Hierarchy]:
    """The mounted hierarchies; none on a machine that has version 2 alone."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    of_interest = [
        (Path(place), kind, words)
        for _, place, kind, words, *_ in mounts
        if kind in ("cgroup", "cgroup2") and Path(place).parent == ROOT
    ]
    return [Hierarchy(place, kind, _options(kind, words)) for place, kind, words in of_interest]


@dataclass(frozen=True)
class Groups:
    """The cgroups `name` (a path relative to each hierarchy)."""

    name: str

    def within(self, name: str) -> Groups:
        """The cgroups `name` in these."""
        return Groups(f"{self.name}/{name}")

    @property
    def places(self) -> list[Path]:
        """One folder a hierarchy."""
        return [hierarchy.place / self.name for hierarchy in hierarchies()]

    def make(self) -> None:
        """Make them; a cpuset is its parent's, since without one no process may enter it."""
        for place in self.places:
            place.mkdir(exist_ok=True)
            if (place / "cpuset.mems").exists():
                _inherit_cpuset(place)

    def processes(self) -> set[int]:
        """The ids of the processes in them and below."""
        lists = [file for place in self.places for file in place.rglob("cgroup.procs")]
        return {int(pid) for file in lists for pid in _text(file).split()}

    def remove(self) -> None:
        """Remove them and all below, once their last processes are gone; OSError where they do not go."""
        end = time.monotonic() + _PATIENCE_SECONDS
        for place in self.places:
            while place.exists():
                try:
                    _remove(place)
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.05)


def of_run(run: Path) -> Groups:
    """The cgroups of a lab whose folder is `run`."""
    return Groups(_PREFIX + run.name)


@contextmanager
def for_run(run: Path) -> Iterator[Groups]:
    """They are there for the block.

    Those of a lab whose folder is gone, left by a killed one, are removed first.
    """
    for place in {path.name for hierarchy in hierarchies() for path in hierarchy.place.glob(f"{_PREFIX}*")}:
        if not (run.parent / place.removeprefix(_PREFIX)).exists():
            Groups(place).remove()
    groups = of_run(run)
    groups.make()
    try:
        yield groups
    finally:
        groups.remove()


def _options(kind: str, words: str) -> str:
    """A controller is mounted anew with its name alone, a hierarchy without one (`name=systemd`) with
    `none` before it."""
    if kind == "cgroup2":
        return "rw"
    kept = [word for word in words.split(",") if word not in _OF_EVERY_MOUNT]
    return ",".join(["none", *kept] if all("=" in word for word in kept) else kept)


def _inherit_cpuset(folder: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        (folder / name).write_text((folder.parent / name).read_text())


def _remove(place: Path) -> None:
    for folder, _, _ in os.walk(place, topdown=False):
        os.rmdir(folder)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # It went while it was looked at.
        return ""
