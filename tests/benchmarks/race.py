"""A fill against the tools that people fetch the same files with, CPU time beside: both end when the last
byte is where it belongs."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.rounds import command, interleaved, seconds
from tests.benchmarks.table import Goal, Series, Table
from tests.benchmarks.volume import Setting, plugins, staged
from tests.plugins import Plugins

_numbers = itertools.count()
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Tool:
    """A program that fetches everything into a folder: `argv` of that folder, its environment, and the
    goal for the ratio."""

    argv: Callable[[Path], list[str]]
    environment: Callable[[Path], Mapping[str, str]] = lambda folder: {}
    goal: Goal | None = None


@dataclass
class Race:
    """`files` by name, from one origin: by a volume of `parameters` and by each of `tools`.

    `node` are flags of the node plugin.
    """

    title: str
    files: Mapping[str, Path]
    parameters: Mapping[str, str]
    tools: Mapping[str, Tool]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)

    def run(self, setting: Setting) -> Table:
        """MB/s (10**6 bytes) of each, everything cold, its own start-up included.

        CPU-seconds per GiB of the one and the other.
        """
        size = sum(path.stat().st_size for path in self.files.values())
        cpu: dict[str, list[float]] = {name: [] for name in ("fill", *self.tools)}
        alone: list[float] = []
        measures: dict[str, Callable[[], float]] = {
            "fill": lambda: self._fill(setting, size, alone, cpu["fill"])
        }
        for name, tool in self.tools.items():
            measures[name] = lambda tool=tool, name=name: self._tool(setting, tool, size, cpu[name])  # type: ignore[misc]
        figures = interleaved(setting.rounds, measures)
        filled = figures.pop("fill")
        table = Table(f"{self.title}, {len(self.files)} file(s), {size / 1e9:.2f} GB", "MB/s")
        for name, series in figures.items():
            table.row(name, series)
        table.compare(
            "NodeStage, from call to mount",
            filled,
            [(name, figures[name], tool.goal) for name, tool in self.tools.items()],
        )
        table.compare(
            "  its worker alone, to the seal",
            Series(tuple(alone)),
            [(name, series, None) for name, series in figures.items()],
        )
        spent = ", ".join(f"{name} {Series(tuple(values)).shown(2)}" for name, values in cpu.items())
        table.notes.append(f"CPU-seconds per GiB, the origin's apart: {spent}")
        return table

    def _fill(self, setting: Setting, size: int, alone: list[float], cpu: list[float]) -> float:
        done = fill(setting, self.parameters, self.environment, self.secrets)
        alone.append(size / 1e6 / done.fill_seconds)
        cpu.append(done.cpu_seconds / size * 2**30)
        return size / 1e6 / done.seconds

    def _tool(self, setting: Setting, tool: Tool, size: int, cpu: list[float]) -> float:
        with new_target(setting) as folder:
            argv, environment = tool.argv(folder), tool.environment(folder)
            os.sync()
            before = _children()
            taken = seconds(lambda: command(argv, environment))
            cpu.append((_children() - before) / size * 2**30)
            return size / 1e6 / taken


@dataclass(frozen=True)
class Filled:
    """What NodeStage took with fresh programs and an empty store, its worker's part of that, and the CPU
    time of the node plugin and its workers."""

    seconds: float
    fill_seconds: float
    cpu_seconds: float


def fill(
    setting: Setting,
    parameters: Mapping[str, str],
    environment: Mapping[str, str],
    secrets: Mapping[str, str] | None = None,
    node: list[str] | None = None,
) -> Filled:
    """One cold fill, taken away again. `node` are further flags of the node plugin."""
    with plugins(setting.folder, environment, node) as running:
        os.sync()
        with staged(running, "volume", parameters, secrets) as volume:
            return Filled(volume.seconds, volume.fill_seconds, _cpu_of(running))


@contextmanager
def new_target(setting: Setting) -> Iterator[Path]:
    """An empty folder on the disk that is measured, for the time of one fetch."""
    folder = setting.folder / f"target-{next(_numbers)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_of(running: Plugins) -> float:
    """CPU-seconds of the node plugin and its workers, which are warm still."""
    return sum(_spent(pid) for pid in (running.node.pid, *running.node.children()))


def _spent(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
