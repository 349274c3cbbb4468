"""A kernel in a file: mounts and loop devices that behave as the real ones do (test_kernels.py proves it) and
outlive a killed process.

A folder that is "mounted on" holds a marker file, so that it cannot be removed, as a real mount point cannot.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from csi.errors import Busy, DataCacheError, UnsupportedByNode
from csi.linux.mounts import Mount, find_mount

MARKER = ".mounted-on"
_EROFS_MAGIC = b"\xe2\xe1\xf5\xe0"
_FLAGS = frozenset(("ro", "nosuid", "nodev"))


@dataclass
class _Loop:
    """`image` is device and inode of the backing file, `holder` the process that has the device open, 0
    for none."""

    image: list[int]
    path: str
    holder: int
    read_ahead: int | None = None


@dataclass
class _State:
    mounts: list[dict[str, Any]] = field(default_factory=list)
    loops: dict[str, _Loop] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    made: int = 0


class FakeKernel:
    """State in `file`, shared by every FakeMounts and FakeLoops over it.

    `step` is called before and after each change.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._guard = file, threading.RLock()
        self.step: Callable[[str], None] = lambda _: None
        self.inside = False
        """Whether a change is being made, whose own work on files is one step to everybody else."""

    @contextmanager
    def changing(self, what: str) -> Iterator[_State]:
        """The state, kept when the block ends without an exception."""
        self.step(f"before {what}")
        with self._guard:
            self.inside = True
            try:
                state = self.read()
                yield state
                temporary = self._file.with_suffix(".tmp")
                temporary.write_text(json.dumps(asdict(state)))
                os.replace(temporary, self._file)
            finally:
                self.inside = False
        self.step(f"after {what}")

    def read(self) -> _State:
        """The state now, without the loops that freed themselves (autoclear)."""
        if not self._file.exists():
            return _State()
        kept = json.loads(self._file.read_text())
        mounted = {mount["source"] for mount in kept["mounts"]}
        loops = {name: _Loop(**loop) for name, loop in kept["loops"].items()}
        alive = {name: loop for name, loop in loops.items() if name in mounted or _runs(loop.holder)}
        return _State(kept["mounts"], alive, kept["busy"], kept["made"])

    @property
    def loops(self) -> list[str]:
        """The devices in use."""
        return sorted(self.read().loops)

    @contextmanager
    def using(self, target: Path) -> Iterator[None]:
        """Have a process work below `target` for the block."""
        with self.changing("use") as state:
            state.busy.append(str(target))
        yield
        with self.changing("use") as state:
            state.busy.remove(str(target))


def _runs(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()


class FakeMounts:
    """The mount table of a FakeKernel."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def list_mounts(self) -> list[Mount]:
        return [
            Mount(**{**kept, "options": frozenset(kept["options"])}) for kept in self._kernel.read().mounts
        ]

    def mount_image(self, device: str, target: Path) -> None:
        with self._kernel.changing("mount") as state:
            loop = state.loops.get(device)
            if loop is None or not target.is_dir():
                raise DataCacheError(f"mounting {device} at {target} failed")
            with open(loop.path, "rb") as image:
                if image.read(1028)[1024:] != _EROFS_MAGIC:
                    raise UnsupportedByNode(f"this node's kernel cannot mount the image on {device} as EROFS")
            self._add(
                state, Mount(str(target), "7:" + device.removeprefix("/dev/loop"), "erofs", device, _FLAGS)
            )

    def bind_mount(self, source: Path, target: Path) -> None:
        with self._kernel.changing("bind") as state:
            if not source.is_dir() or not target.is_dir():
                raise DataCacheError(f"binding {source} to {target} failed")
            shown = _covering(self.list_mounts(), str(source))
            self._add(state, Mount(str(target), shown.device, shown.fs_type, shown.source, _FLAGS))

    def mount_marker(self, label: str, target: Path) -> None:
        with self._kernel.changing("marker") as state:
            if not target.is_dir():
                raise DataCacheError(f"marking {target} failed")
            state.made += 1
            self._add(state, Mount(str(target), f"0:{state.made}", "tmpfs", label, _FLAGS | {"noexec"}))

    def unmount(self, target: Path) -> None:
        table = self.list_mounts()
        if find_mount(table, target) is None:
            return
        if str(target) in self._kernel.read().busy or any(
            mount.target.startswith(f"{target}/") for mount in table
        ):
            raise Busy(f"{target} is in use by a process on this node")
        with self._kernel.changing("unmount") as state:
            last = max(number for number, mount in enumerate(state.mounts) if mount["target"] == str(target))
            del state.mounts[last]
            if all(mount["target"] != str(target) for mount in state.mounts):
                (target / MARKER).unlink()

    def _add(self, state: _State, mount: Mount) -> None:
        state.mounts.append({**asdict(mount), "options": sorted(mount.options)})
        (Path(mount.target) / MARKER).touch()


def _covering(table: list[Mount], path: str) -> Mount:
    above = [mount for mount in table if path == mount.target or path.startswith(mount.target + "/")]
    return max(
        above,
        key=lambda mount: len(mount.target),
        default=Mount("/", "8:1", "ext4", "/dev/sda1", frozenset(("rw",))),
    )


class FakeLoops:
    """The loop devices of a FakeKernel."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    @contextmanager
    def attach(self, image: Path, read_ahead: int | None = None) -> Iterator[str]:
        status = image.stat()
        with self._kernel.changing("attach") as state:
            device = f"/dev/loop{1000 + state.made}"
            state.made += 1
            state.loops[device] = _Loop([status.st_dev, status.st_ino], str(image), os.getpid(), read_ahead)
        try:
            yield device
        finally:
            with self._kernel.changing("close") as state:
                state.loops[device].holder = 0

    def set_read_ahead(self, device: str, size: int | None) -> None:
        with self._kernel.changing("read ahead") as state:
            if device in state.loops:
                state.loops[device].read_ahead = size

    def is_backed_by(self, device: str, image: Path) -> bool:
        loop = self._kernel.read().loops.get(device)
        if loop is None or not image.exists():
            return False
        return loop.image == [image.stat().st_dev, image.stat().st_ino]

    def wait_until_free(self, device: str, seconds: float) -> bool:
        return device not in self._kernel.read().loops
