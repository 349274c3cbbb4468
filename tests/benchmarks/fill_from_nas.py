"""A fill from a NAS against nfs-cp, libnfs's own copying program, onto the same disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.contents import make
from tests.benchmarks.origins import in_memory
from tests.benchmarks.rounds import command, interleaved, say, seconds
from tests.benchmarks.table import Series, Table, at_least
from tests.benchmarks.volume import Setting, plugins, staged
from tests.origins.ganesha import Export, Ganesha


def nas_parameters(nas: Ganesha, folder: Path, version: str = "3") -> dict[str, str]:
    """A volume of a folder of that server."""
    options = f"nolock,proto=tcp,port={nas.port},mountport={nas.mount_port}"
    return {"server": nas.server, "path": str(folder), "vers": version, "options": options}


def measure(setting: Setting) -> Iterator[Table]:
    """MB/s (10**6 bytes) from the call until the files can be read; NFSv3, the server's files in memory."""
    for shape in ("one", "mix"):
        with in_memory("nas") as folder, Ganesha([Export(folder, attribute_seconds=60)]) as nas:
            say(f"making {setting.gib:g} GiB, {shape}")
            files = make(folder, shape, setting.total)
            yield _compare(setting, nas, folder, files)


def _compare(setting: Setting, nas: Ganesha, folder: Path, files: Mapping[str, Path]) -> Table:
    size = sum(path.stat().st_size for path in files.values()) / 1e6
    alone: list[float] = []
    measures = {"fill": lambda: _fill(setting, nas, folder, size, alone), "nfs-cp": lambda: size / _nfs_cp(setting, nas, files)}
    figures = interleaved(setting.rounds, measures)
    table = Table(f"Fill from a NAS (NFSv3), {len(files)} file(s), {size / 1e3:.1f} GB", "MB/s")
    table.row("nfs-cp", figures["nfs-cp"])
    table.compare("NodeStage, from call to mount", figures["fill"], [("nfs-cp", figures["nfs-cp"], at_least(2))])
    table.compare("  its worker alone, to the seal", Series(tuple(alone)), [("nfs-cp", figures["nfs-cp"], None)])
    if len(files) > 1:
        table.notes.append("nfs-cp copies one file a run: a run for each file, one after the other")
    return table


def _fill(setting: Setting, nas: Ganesha, folder: Path, size: float, alone: list[float]) -> float:
    with plugins(setting.folder) as running:
        os.sync()
        with staged(running, "volume", nas_parameters(nas, folder)) as volume:
            alone.append(size / volume.fill_seconds)
            return size / volume.seconds


def _nfs_cp(setting: Setting, nas: Ganesha, files: Mapping[str, Path]) -> float:
    target = setting.folder / "copied"
    os.sync()
    taken = 0.0
    for path in files.values():
        url = f"nfs://{nas.server}{path}?version=3&nfsport={nas.port}&mountport={nas.mount_port}"
        taken += seconds(lambda url=url: command(["nfs-cp", url, str(target)]))
        target.unlink()
    return taken
