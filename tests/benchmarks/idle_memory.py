"""Idle resident memory of each program, a minute after 100 creates, 20 fills and 200 published volumes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from csi.errors import Busy
from datacache.client import PluginClient
from tests.apiserver import NOT_RUN, ApiServer, programs
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Series, Table, at_most
from tests.benchmarks.volume import Setting, Staged, hub_parameters, plugins, stage
from tests.origins.hub import Hub
from tests.plugins import Plugins, Program

CREATES, FILLS, PUBLISHED, IDLE_SECONDS = 100, 20, 200, 60
# external-provisioner makes up to 100 volumes at a time.
CALLERS = 100
_GOAL = at_most(64, " MB")


def measure(setting: Setting) -> list[Table]:
    """Resident megabytes (10**6 bytes, VmRSS); the volumes stay published while the programs idle.

    Then the same with a cluster for a registry.
    """
    tables = [_measured(setting, "a folder for a registry", None)]
    if programs() is None:
        say(NOT_RUN)
        return tables
    with ApiServer() as cluster:
        return [*tables, _measured(setting, "a cluster for a registry", cluster.kubeconfig())]


def _measured(setting: Setting, what: str, kubeconfig: Path | None) -> Table:
    with (
        Hub() as hub,
        plugins(setting.folder, {"HF_ENDPOINT": hub.endpoint}, kubeconfig=kubeconfig) as running,
    ):
        for number in range(CREATES):
            hub.repo(f"org/small-{number}", {"config.json": b"{}", "weights.bin": os.urandom(2**20)})
        started = {name: program.resident_bytes() for name, program in _programs(running)}
        _work(running)
        say(f"idle for {IDLE_SECONDS} s")
        time.sleep(IDLE_SECONDS)
        after = f"{IDLE_SECONDS} s after {CREATES} creates, {FILLS} fills, {PUBLISHED} published volumes"
        table = Table(f"Idle resident memory with {what}, {after}", "MB", 1)
        for name, program in _programs(running):
            table.row(f"{name}, just started", Series((started[name] / 1e6,)))
            table.row(f"{name}, after work, idle", Series((program.resident_bytes() / 1e6,)), _GOAL)
            table.notes.append(
                f"{name}: {_shares(program)}, {_threads(program)} threads, {len(program.children())} worker "
                "processes left"
            )
    return table


def _programs(running: Plugins) -> list[tuple[str, Program]]:
    return [("controller", running.controller), ("node", running.node)]


def _work(running: Plugins) -> None:
    with ExitStack() as opened:
        controller, node = (opened.enter_context(running.client(name)) for name in ("controller", "node"))
        callers = opened.enter_context(ThreadPoolExecutor(CALLERS))
        list(
            callers.map(
                lambda n: controller.create(f"volume-{n}", hub_parameters(f"org/small-{n}")), range(CREATES)
            )
        )
        say(f"{CREATES} volumes created")
        volumes = list(
            callers.map(
                lambda n: stage(running, node, f"volume-{n}", hub_parameters(f"org/small-{n}")), range(FILLS)
            )
        )
        say(f"{FILLS} images filled")
        list(callers.map(lambda n: _publish(running, node, volumes, n), range(PUBLISHED)))
        say(f"{PUBLISHED} published")


def _publish(running: Plugins, node: PluginClient, volumes: list[Staged], number: int) -> None:
    """One pod of its own; volumes that another call is working on are tried again, as kubelet does."""
    volume, target = volumes[number % FILLS], running.folder / f"pod-{number}" / "mount"
    while True:
        try:
            return node.publish(volume.id, str(target), volume.context, str(volume.path))
        except Busy:
            time.sleep(0.05)


def _shares(program: Program) -> str:
    """Which part of the memory is files' pages (code), which the process's own."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{program.pid}/status").read_text().splitlines())
    anonymous, files = (int(status[key].split()[0]) * 1024 / 1e6 for key in ("RssAnon", "RssFile"))
    return f"{anonymous:.1f} MB its own, {files:.1f} MB pages of files"


def _threads(program: Program) -> int:
    return len(list(Path(f"/proc/{program.pid}/task").iterdir()))
