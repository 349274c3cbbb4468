"""Runs a plugin or a worker that kills itself at a chosen point: `python -m tests.kernel.knife FOLDER node
ARGUMENTS...`.

Orders are read from FOLDER/orders when a point is reached: a list of `{"point", "victim", "skip", "times"}`,
the first of which is in force; it passes to the next after `times` kills, so that a plugin that is started
again runs into its next kill. The kill is the process's own SIGKILL at that very call, which cannot miss;
with the victim "plugin" a worker kills its parent and then waits for the end of its input, as the plugin's
death brings it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_guard = threading.Lock()
_role = ""


class Knife:
    """Carries out the orders in `folder`/orders, the first of the list first, and writes each kill to
    `folder`/hits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, int] = {}

    def reached(self, point: str) -> None:
        """Kill if this point, at this count in this process, is what the first order says."""
        with _guard:
            orders = read_orders(self._folder)
            if not orders or orders[0]["point"] != point:
                return
            order = orders[0]
            self._seen[point] = self._seen.get(point, 0) + 1
            if self._seen[point] <= order["skip"]:
                return
            order["times"] -= 1
            write_orders(self._folder, orders if order["times"] else orders[1:])
            with (self._folder / "hits").open("a") as hits:
                hits.write(f"{order['victim']} at {point}\n")
            _kill(order["victim"])

    def around(self, owner: Any, name: str, point: str, *, before: bool = False, after: bool = False) -> None:
        """Make points of the moments before and after `owner.name` runs: "<point> begins", "<point> done"."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before:
                self.reached(f"{point} begins")
            result = inner(*args, **kwargs)
            if after:
                self.reached(f"{point} done")
            return result

        static = isinstance(owner, type) and isinstance(owner.__dict__.get(name), staticmethod)
        setattr(owner, name, staticmethod(wrapped) if static else wrapped)


def read_orders(folder: Path) -> list[dict[str, Any]]:
    """The orders still open."""
    try:
        return list(json.loads((folder / "orders").read_text()))
    except FileNotFoundError:
        return []


def write_orders(folder: Path, orders: list[dict[str, Any]]) -> None:
    """Replace the orders as a whole."""
    (folder / "orders.new").write_text(json.dumps(orders))
    (folder / "orders.new").rename(folder / "orders")


def _kill(victim: str) -> None:
    if victim == "plugin" and _role == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
        threading.Event().wait()
    os.kill(os.getpid(), signal.SIGKILL)


def arm_worker(knife: Knife, worker: ModuleType) -> None:
    """The points of fill and seal."""
    from csi.images.fill import fill
    from csi.images.node_store.journal import Journal
    from csi.images.node_store.partial_image import PartialImage
    from csi.images.reuse.copy_runs import RunCopier

    knife.around(PartialImage, "create", "allocate", before=True, after=True)
    knife.around(RunCopier, "_copy_step", "copy", before=True, after=True)
    knife.around(RunCopier, "sync", "copy sync", after=True)
    knife.around(PartialImage, "write_metadata", "metadata", after=True)
    knife.around(PartialImage, "write", "chunk", before=True, after=True)
    knife.around(PartialImage, "sync", "sync", after=True)
    knife.around(Journal, "append", "journal", after=True)
    knife.around(fill, "fsync_file", "seal sync", before=True, after=True)
    knife.around(fill, "rename_and_sync", "seal rename", after=True)
    knife.around(worker, "seal", "seal", after=True)


def arm_node(knife: Knife) -> None:
    """The points of adopting, mounting, marking, binding and their undoing."""
    from csi.images.node_store.store import Store
    from csi.linux.loop_devices import KernelLoopDevices
    from csi.linux.mounts import KernelMountTable
    from node_plugin.volumes import volumes
    from node_plugin.volumes.records import VolumeRecords

    knife.around(Store, "adopt_manifest", "adopt", before=True, after=True)
    knife.around(KernelLoopDevices, "_configure", "loop", before=True, after=True)
    knife.around(KernelMountTable, "mount_image", "mount", after=True)
    knife.around(VolumeRecords, "put", "record", before=True, after=True)
    knife.around(KernelMountTable, "_mount", "mount(2)", after=True)
    knife.around(KernelMountTable, "bind_mount", "bind", before=True, after=True)
    knife.around(KernelMountTable, "mount_marker", "marker", before=True, after=True)
    knife.around(KernelMountTable, "unmount", "unmount", before=True, after=True)
    knife.around(volumes, "remove_target", "target removal", before=True, after=True)


def main() -> None:
    """Arm and run."""
    global _role
    folder, _role, *arguments = sys.argv[1:]
    knife = Knife(Path(folder))
    with (Path(folder) / "pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    if _role == "worker":
        import csi.worker_process.__main__ as worker

        arm_worker(knife, worker)
        sys.argv[1:] = arguments
        worker.main()
    else:
        import node_plugin.__main__ as node
        from node_plugin import composition

        arm_node(knife)
        command = (sys.executable, "-m", "tests.kernel.knife", folder, "worker")
        composition.build_worker_command = lambda *log_options: (*command, *log_options)
        node.main(arguments)


if __name__ == "__main__":
    main()
