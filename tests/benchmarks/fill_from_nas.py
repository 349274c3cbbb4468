"""A fill from a NAS against nfs-cp, libnfs's own copying program, onto the same disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.contents import make
from tests.benchmarks.origins import in_memory
from tests.benchmarks.race import Race, Tool
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, at_least
from tests.benchmarks.volume import Setting
from tests.origins.ganesha import Export, Ganesha


def nas_parameters(nas: Ganesha, folder: Path, version: str = "3") -> dict[str, str]:
    """A volume of a folder of that server."""
    options = f"nolock,proto=tcp,port={nas.port},mountport={nas.mount_port}"
    return {"server": nas.server, "path": str(folder), "vers": version, "options": options}


def measure(setting: Setting) -> Iterator[Table]:
    """NFSv3, the server's files in memory.

    nfs-cp copies one file a run, so many files take many runs, some of them at once.
    """
    for shape in ("one", "mix", "small"):
        with in_memory("nas") as folder, Ganesha([Export(folder, attribute_seconds=60)]) as nas:
            say(f"making files, {shape}")
            yield _race(setting, nas, folder, make(folder, shape, setting.total))


def _race(setting: Setting, nas: Ganesha, folder: Path, files: Mapping[str, Path]) -> Table:
    at_once = (1,) if len(files) == 1 else (1, 4) if len(files) < 1000 else (8,)
    tools = {
        f"nfs-cp, {count} at once": Tool(
            lambda target, count=count: _nfs_cp(nas, files, target, count), goal=at_least(2.0)
        )
        for count in at_once
    }
    return Race("Fill from a NAS (NFSv3)", files, nas_parameters(nas, folder), tools).run(setting)


def _nfs_cp(nas: Ganesha, files: Mapping[str, Path], target: Path, at_once: int) -> list[str]:
    """Into one folder, under numbers: making folders is no part of it."""
    pairs = target / "pairs"
    where = f"?version=3&nfsport={nas.port}&mountport={nas.mount_port}"
    pairs.write_text(
        "".join(
            f"nfs://{nas.server}{path}{where}\n{target}/{number}\n"
            for number, path in enumerate(files.values())
        )
    )
    return ["xargs", "-a", str(pairs), "-d", "\n", "-n", "2", "-P", str(at_once), "nfs-cp"]
