"""N readers straight from the NAS, as pods do without a cache, against N readers of one volume: cold, then
warm."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.source import NasSource
from tests.benchmarks.contents import make
from tests.benchmarks.fill_from_nas import nas_parameters
from tests.benchmarks.origins import in_memory
from tests.benchmarks.rounds import drop_caches, interleaved, say, seconds
from tests.benchmarks.table import Table
from tests.benchmarks.volume import Setting, plugins, published, staged
from tests.origins.ganesha import Export, Ganesha

READERS = (1, 4, 16)
_BLOCK = 4 << 20
_spawned = multiprocessing.get_context("spawn")


def measure(setting: Setting) -> Iterator[Table]:
    """MB/s (10**6 bytes) of all readers together, each of which reads everything once in a process of its
    own."""
    with (
        in_memory("nas") as folder,
        Ganesha([Export(folder, attribute_seconds=60)]) as nas,
        plugins(setting.folder) as running,
    ):
        say(f"making {setting.gib:g} GiB")
        files = make(folder, "one", setting.total)
        with (
            staged(running, "volume", nas_parameters(nas, folder)) as volume,
            published(running, volume, running.folder / "pod" / "mount") as pod,
        ):
            spec, size = (
                nas.spec(folder, timeout=60),
                sum(path.stat().st_size for path in files.values()) / 1e6,
            )
            for count in READERS:
                yield _compare(setting, spec, pod, size, count)


def _compare(setting: Setting, spec: NasSpec, mounted: Path, size: float, count: int) -> Table:
    rounds = setting.rounds if count < max(READERS) else 1
    measures: dict[str, Callable[[], float]] = {
        "NAS": lambda: count * size / _together(count, read_nas, spec),
        "cold": lambda: count * size / _cold(count, mounted),
        "warm": lambda: count * size / _together(count, read_files, mounted),
    }
    figures = interleaved(rounds, measures)
    table = Table(f"{count} reader(s), {size / 1e3:.1f} GB each", "MB/s")
    table.row("straight from the NAS, libnfs", figures["NAS"])
    for name in ("cold", "warm"):
        table.compare(f"from the volume, {name}", figures[name], [("the NAS", figures["NAS"], None)])
    table.notes.append(
        "the NAS is on this very machine: its network costs nothing here, and every one of its bytes costs "
        "this machine's CPU"
    )
    return table


def _cold(count: int, mounted: Path) -> float:
    drop_caches()
    return _together(count, read_files, mounted)


def _together(count: int, work: Callable[..., None], *arguments: object) -> float:
    """Seconds from the common start of `count` processes to the end of the last.

    Their own start-up is not in it.
    """
    ready = _spawned.Barrier(count + 1)
    processes = [_spawned.Process(target=_wait_then, args=(ready, work, *arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    ready.wait()
    taken = seconds(lambda: [process.join() for process in processes])
    if any(process.exitcode for process in processes):
        raise RuntimeError("a reader failed")
    return taken


def _wait_then(ready: object, work: Callable[..., None], *arguments: object) -> None:
    ready.wait()  # type: ignore[attr-defined]
    work(*arguments)


def read_nas(spec: NasSpec) -> None:
    """Every byte of the folder, in order, over one connection."""
    buffer = memoryview(bytearray(_BLOCK))
    with closing(NasSource(CacheSpec(spec))) as source:
        manifest = source.resolve(source.pin())
        with source.open_reader(manifest) as reader:
            for entry in manifest.files:
                for offset in range(0, entry.size, _BLOCK):
                    reader.read_into(entry, offset, buffer[: entry.size - offset])


def read_files(root: Path) -> None:
    """Every byte of the files below `root`, in order."""
    buffer = bytearray(_BLOCK)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
