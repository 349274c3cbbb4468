"""Reading through a published volume against reading the very same image as a plain file of the host:
cold, warm, mapped."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.origins import hub_site
from tests.benchmarks.rounds import command, drop_caches, interleaved, seconds
from tests.benchmarks.table import Series, Table, at_least
from tests.benchmarks.volume import Setting, hub_parameters, plugins, published, staged
from tests.plugins import Plugins, loops_below

_BLOCKS = ("1M", "8M")
_PAGE = 4096
Measures = dict[str, Callable[[], float]]


def measure(setting: Setting) -> Iterator[Table]:
    """MB/s (10**6 bytes) of one reader.

    The host's file is the image itself, so both stand at the same place of the disk.
    """
    with hub_site() as site:
        site.add("org/one", "one", setting.total)
        with (
            plugins(setting.folder, {"HF_ENDPOINT": site.hub.endpoint}) as running,
            staged(running, "volume", hub_parameters("org/one")) as volume,
            published(running, volume, running.folder / "pod" / "mount") as pod,
        ):
            inside = pod / "model.safetensors"
            raw = running.store / "images" / volume.context["manifestDigest"] / "image"
            yield _cold(setting, inside, raw, _read_ahead(running))
            yield _warm(setting, inside, raw)
            yield _mapped(setting, inside, raw)


def _read_ahead(running: Plugins) -> str:
    loop = next(iter(loops_below(running.folder)))
    ours, disk = (
        f"{int(path.read_text()) // 1024} MiB"
        for path in (Path(f"/sys/block/{loop}/queue/read_ahead_kb"), _disk_read_ahead(running.store))
    )
    return f"read-ahead: {ours} in the volume, {disk} on the host's disk"


def _disk_read_ahead(folder: Path) -> Path:
    device = folder.stat().st_dev
    return Path(f"/sys/dev/block/{device >> 8 & 0xFFF}:{device & 0xFF}/bdi/read_ahead_kb")


def _dd(path: Path, block: str, *flags: str) -> float:
    """MB/s of one pass."""
    size = path.stat().st_size / 1e6
    return size / seconds(
        lambda: command(["dd", f"if={path}", "of=/dev/null", f"bs={block}", "status=none", *flags])
    )


def _after_drop(read: Callable[[], float]) -> Callable[[], float]:
    def measured() -> float:
        drop_caches()
        return read()

    return measured


def _best(figures: dict[str, Series], names: list[str]) -> str:
    return max(names, key=lambda name: figures[name].median)


def _cold(setting: Setting, inside: Path, raw: Path, note: str) -> Table:
    measures: Measures = {}
    for block in _BLOCKS:
        for name, path in (("host file", raw), ("volume", inside)):
            measures[f"{name}, buffered, {block}"] = _after_drop(
                lambda path=path, block=block: _dd(path, block)
            )
            measures[f"{name}, O_DIRECT, {block}"] = _after_drop(
                lambda path=path, block=block: _dd(path, block, "iflag=direct")
            )
    figures = interleaved(setting.rounds, measures)
    table = Table("Cold sequential read", "MB/s")
    host = [name for name in measures if name.startswith("host")]
    for name in host:
        table.row(name, figures[name])
    best = _best(figures, host)
    for way in ("buffered", "O_DIRECT"):
        alike = _best(figures, [name for name in host if way in name])
        ours = _best(figures, [f"volume, {way}, {block}" for block in _BLOCKS])
        baselines = [(alike, figures[alike], at_least(0.95))] + (
            [(best, figures[best], at_least(0.95))] if best != alike else []
        )
        table.compare(ours, figures[ours], baselines)
    table.notes.append(note)
    return table


def _warm(setting: Setting, inside: Path, raw: Path) -> Table:
    for path in (inside, raw):
        _dd(path, "8M")
    figures = interleaved(
        2 * setting.rounds, {"host file": lambda: _dd(raw, "1M"), "volume": lambda: _dd(inside, "1M")}
    )
    table = Table("Warm sequential read (page cache), blocks of 1 MiB", "MB/s")
    table.row("host file", figures["host file"])
    table.compare("volume", figures["volume"], [("host file", figures["host file"], at_least(0.97))])
    return table


def _mapped(setting: Setting, inside: Path, raw: Path) -> Table:
    measures = {
        "host file": _after_drop(lambda: _touch_pages(raw)),
        "volume": _after_drop(lambda: _touch_pages(inside)),
    }
    figures = interleaved(setting.rounds, measures)
    table = Table("Cold read through mmap, every page touched in order", "MB/s")
    table.row("host file", figures["host file"])
    table.compare("volume", figures["volume"], [("host file", figures["host file"], None)])
    return table


def _touch_pages(path: Path) -> float:
    """MB/s of looking at one byte of each page."""
    size = path.stat().st_size
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        return size / 1e6 / seconds(lambda: mapped[::_PAGE])
