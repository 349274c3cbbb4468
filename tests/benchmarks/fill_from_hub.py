"""A verified fill from a hub next door against the ways people fetch a repository by hand, and an origin of 400 MB/s used to the full."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.benchmarks.origins import HubSite, hub_site
from tests.benchmarks.rounds import command, interleaved, say, seconds
from tests.benchmarks.table import Series, Table, at_least
from tests.benchmarks.volume import Setting, hub_parameters, plugins, staged
from tests.origins.hub import Hub

LIMIT = 400e6
_HF = str(Path(sys.executable).parent / "hf")
_PLAIN = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_numbers = itertools.count()
Measures = dict[str, Callable[[], float]]


def measure(setting: Setting) -> Iterator[Table]:
    """MB/s (10**6 bytes of content) from the call until the files can be read; everything starts cold, its own start-up included."""
    with hub_site() as site:
        for shape in ("one", "mix"):
            repo = f"org/{shape}"
            files = site.add(repo, shape, setting.total)
            yield _against_tools(setting, site, repo, files)
            if shape == "one":
                yield _limited(setting, repo, files)
            shutil.rmtree(site.root / repo)


def _against_tools(setting: Setting, site: HubSite, repo: str, files: Mapping[str, Path]) -> Table:
    size = sum(path.stat().st_size for path in files.values()) / 1e6
    alone: list[float] = []
    hashed: dict[str, list[float]] = {"sha256sum": [], "openssl sha256": []}
    tuned, environment, flags = _best_hf(setting, site.hub, repo, len(files) > 1)
    measures: Measures = {
        "fill": lambda: fill(setting, site.hub, repo, size, alone),
        "curl": lambda: size / _curl(setting, site, repo, files, size, hashed),
        "hf download": lambda: size / hf(setting, site.hub, repo, {}, []),
        f"hf download, {tuned}": lambda: size / hf(setting, site.hub, repo, environment, flags),
    }
    figures = interleaved(setting.rounds, measures)
    filled = figures.pop("fill")
    figures |= {f"curl + {program}": Series(tuple(values)) for program, values in hashed.items()}
    table = Table(f"Verified fill, {len(files)} file(s), {size / 1e3:.1f} GB, nginx sends the bytes", "MB/s")
    for name, series in figures.items():
        table.row(name, series)
    goals = {"hf": 2.0, "curl": 1.0, "curl +": 1.6}
    baselines = [(name, series, at_least(goals[" ".join(name.split()[: 1 + ("+" in name)])])) for name, series in figures.items()]
    table.compare("NodeStage, from call to mount", filled, baselines)
    table.compare(
        "  its worker alone, to the seal", Series(tuple(alone)), [("hf download", figures["hf download"], None), ("curl", figures["curl"], None)]
    )
    table.notes.append(
        "hf and curl leave what they wrote to the page cache; the fill syncs and seals. curl: one connection, one file after the other"
    )
    return table


def _best_hf(setting: Setting, hub: Hub, repo: str, many: bool) -> tuple[str, Mapping[str, str], list[str]]:
    """What of hf's settings makes it fastest here, by one try each: its name, environment and flags."""
    fast = {"HF_XET_HIGH_PERFORMANCE": "1"}
    settings: list[tuple[str, Mapping[str, str], list[str]]] = [("high performance", fast, [])]
    settings += [(f"plain HTTP, {count} worker(s)", _PLAIN, ["--max-workers", str(count)]) for count in ((1, 4, 16) if many else (1,))]
    taken = [(hf(setting, hub, repo, environment, flags), name, environment, flags) for name, environment, flags in settings]
    say("hf download: " + ", ".join(f"{name} {duration:.1f} s" for duration, name, *_ in taken))
    return min(taken, key=lambda found: found[0])[1:]


def fill(setting: Setting, hub: Hub, repo: str, size: float, alone: list[float], node: list[str] | None = None) -> float:
    """MB/s of NodeStage with fresh programs and an empty store; the worker's own goes to `alone`."""
    with plugins(setting.folder, {"HF_ENDPOINT": hub.endpoint}, node) as running:
        os.sync()
        with staged(running, "volume", hub_parameters(repo)) as volume:
            alone.append(size / volume.fill_seconds)
            return size / volume.seconds


def _curl(setting: Setting, site: HubSite, repo: str, files: Mapping[str, Path], size: float, hashed: dict[str, list[float]]) -> float:
    """Seconds of one curl for all files (one connection, kept alive); MB/s with a program that hashes what came go to `hashed`."""
    folder = _target(setting)
    arguments = [word for name in files for word in ("--create-dirs", "-o", str(folder / name), site.url(repo, name))]
    os.sync()
    taken = seconds(lambda: command(["curl", "-sSf", *arguments]))
    names = [str(folder / name) for name in files]
    for program, argv in (("sha256sum", ["sha256sum", "--"]), ("openssl sha256", ["openssl", "dgst", "-sha256"])):
        hashed[program].append(size / (taken + seconds(lambda argv=argv: command([*argv, *names]))))
    shutil.rmtree(folder)
    return taken


def hf(setting: Setting, hub: Hub, repo: str, environment: Mapping[str, str], flags: list[str]) -> float:
    """Seconds of `hf download` into a fresh folder, with a fresh home."""
    folder = _target(setting)
    home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), **environment}
    os.sync()
    taken = seconds(lambda: command([_HF, "download", repo, "--quiet", "--local-dir", str(folder / "files"), *flags], home))
    shutil.rmtree(folder)
    return taken


def _target(setting: Setting) -> Path:
    folder = setting.folder / f"target-{next(_numbers)}"
    folder.mkdir()
    return folder


def _limited(setting: Setting, repo: str, files: Mapping[str, Path]) -> Table:
    """An origin that gives 400 MB/s to all connections together: the hub's own large-file host, paced."""
    size = sum(path.stat().st_size for path in files.values()) / 1e6
    alone: list[float] = []
    with Hub() as hub:
        hub.repo(repo, files, digests=next(iter(files.values())).parent.parent.parent / ".hub-digests")
        hub.faults.rate = LIMIT
        say(f"origin limited to {LIMIT / 1e6:.0f} MB/s")
        figures = interleaved(setting.rounds, {"fill": lambda: fill(setting, hub, repo, size, alone)})
    limit = Series((LIMIT / 1e6,) * setting.rounds)
    table = Table(f"Verified fill, {size / 1e3:.1f} GB, from an origin limited to {LIMIT / 1e6:.0f} MB/s", "MB/s")
    table.compare("NodeStage, from call to mount", figures["fill"], [("the limit", limit, at_least(0.9))])
    table.compare("  its worker alone, to the seal", Series(tuple(alone)), [("the limit", limit, None)])
    return table
