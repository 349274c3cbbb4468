"""Location of a pod's cgroup as kubelet creates it, with either cgroup driver, at any depth.

With cgroupfs: `kubepods/[burstable|besteffort/]pod<uid>`. With systemd:
`kubepods.slice/[kubepods-burstable.slice/] kubepods-burstable-pod<uid with underscores>.slice`, where each
name has its parent's as prefix (kubelet, pkg/kubelet/cm).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_KUBEPODS = re.compile(r"(?:.*-)?kubepods(?:\.slice)?")
_QOS = re.compile(r"burstable|besteffort|guaranteed|.*kubepods-(?:burstable|besteffort|guaranteed)\.slice")
_POD = re.compile(r"(?:.*-)?pod")
_UID = re.compile(r"[0-9A-Za-z]+(?:-[0-9A-Za-z]+)*")
# A kubelet that runs in a pod keeps its own pods below a volume of that pod: the last match is the innermost
# pod.
_TARGET = re.compile(r"/pods/([^/]+)(?=/volumes/)")
# Deep enough for a kubelet in a container whose runtime has a slice of its own:
# /docker.slice/docker-<id>.scope/kubelet/kubepods.
_MAX_DEPTH = 6


def find_pod_uid(target: Path, fallback: str = "") -> str:
    """Return the uid of the pod that a target path belongs to, else `fallback`.

    Return "" for no uid or a malformed one, because the uid becomes part of a path.
    """
    uids = _TARGET.findall(str(target))
    uid = uids[-1] if uids else fallback
    return uid if _UID.fullmatch(uid) and len(uid) <= 64 else ""


class PodCgroups:
    """Finder of pods' cgroups below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parents: list[Path] = []

    def find(self, uid: str) -> list[Path]:
        """Return the folders of the pod's cgroup below kubelet's known folders.

        The result is empty if the cgroup does not exist (yet). It has several if another cgroup driver or QoS
        class has left an empty one behind.
        """
        return [path for parent in self._parents if (path := _pod_folder(parent, uid)).is_dir()]

    def rescan(self) -> None:
        """Search kubelet's folders again."""
        self._parents = [
            folder
            for kubepods in _find_kubepods(self._root, _MAX_DEPTH)
            for folder in (kubepods, *_list_qos_folders(kubepods))
        ]

    def list_watch_folders(self) -> set[Path]:
        """Return the folders in which a pod's cgroup, or an ancestor of one, may appear."""
        return {
            folder
            for parent in self._parents
            for folder in (parent, *parent.parents)
            if folder.is_relative_to(self._root)
        } | {self._root}


def is_pod_folder(name: str) -> bool:
    """Return whether a folder name is that of a pod's cgroup, not of an ancestor."""
    return _POD.match(name) is not None


def _pod_folder(parent: Path, uid: str) -> Path:
    if parent.name.endswith(".slice"):
        return parent / f"{parent.name.removesuffix('.slice')}-pod{uid.replace('-', '_')}.slice"
    return parent / f"pod{uid}"


def _find_kubepods(folder: Path, depth: int) -> Iterator[Path]:
    for child in list_folders(folder):
        if _KUBEPODS.fullmatch(child.name):
            yield child
        elif depth > 1:
            yield from _find_kubepods(child, depth - 1)


def _list_qos_folders(kubepods: Path) -> list[Path]:
    return [child for child in list_folders(kubepods) if _QOS.fullmatch(child.name)]


def list_folders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, sorted by name; empty if it is gone."""
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def walk_folders(folder: Path) -> Iterator[Path]:
    """Yield `folder` and every folder below it."""
    yield folder
    for child in list_folders(folder):
        yield from walk_folders(child)
