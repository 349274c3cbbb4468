"""A verified fill from a hub next door against the ways people fetch a repository by hand."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.origins import HubSite, hub_site
from tests.benchmarks.race import Race, Tool, fill, new_target
from tests.benchmarks.rounds import command, say, seconds
from tests.benchmarks.table import Table, at_least
from tests.benchmarks.volume import Setting, hub_parameters
from tests.origins.hub import Hub

_HF = str(Path(sys.executable).parent / "hf")
_PLAIN = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_MANY = 1000
_HASH = {"sha256sum": "sha256sum --", "openssl sha256": "openssl dgst -sha256"}


def measure(setting: Setting) -> Iterator[Table]:
    """MB/s (10**6 bytes of content) from the call until the files can be read.

    nginx sends the bytes, and everything starts cold.
    """
    with hub_site() as site:
        for shape in ("one", "mix", "small"):
            repo = f"org/{shape}"
            files = site.add(repo, shape, setting.total)
            # Of thousands of files hf takes minutes each time.
            yield _race(setting if len(files) < _MANY else replace(setting, rounds=1), site, repo, files)
            shutil.rmtree(site.root / repo)


def _race(setting: Setting, site: HubSite, repo: str, files: Mapping[str, Path]) -> Table:
    tuned, environment, flags = _best_hf(setting, site.hub, repo, len(files))
    urls = site.root / "urls"
    urls.write_text("".join(f'url = "{site.url(repo, name)}"\noutput = "{name}"\n' for name in files))
    hashing = {
        f"curl + {name}": Tool(lambda folder, hash=hash: _curl(urls, folder, hash), goal=at_least(1.6))
        for name, hash in _HASH.items()
    }
    by_hand = {"curl": Tool(lambda folder: _curl(urls, folder), goal=at_least(1.0)), **hashing}
    tools = {
        # curl asks nginx alone, not the hub for where each file is: of thousands of files that is another
        # task.
        **(by_hand if len(files) < _MANY else {}),
        "hf download": Tool(
            lambda folder: _hf(repo, folder), lambda folder: _home(site.hub, folder), at_least(2.0)
        ),
        f"hf download, {tuned}": Tool(
            lambda folder: [*_hf(repo, folder), *flags],
            lambda folder: {**_home(site.hub, folder), **environment},
            at_least(2.0),
        ),
    }
    table = Race(
        "Verified fill from a hub", files, hub_parameters(repo), tools, {"HF_ENDPOINT": site.hub.endpoint}
    ).run(setting)
    table.notes.append(
        "curl: one connection, one file after the other; but for the fill all leave what they wrote in the "
        "page cache"
    )
    return table


def _curl(urls: Path, folder: Path, hash: str = "") -> list[str]:
    fetch = f"cd '{folder}' && curl -sSf --create-dirs -K '{urls}'"
    return ["sh", "-c", f"{fetch} && find . -type f -print0 | xargs -0 -n 500 {hash}" if hash else fetch]


def _hf(repo: str, folder: Path) -> list[str]:
    return [_HF, "download", repo, "--quiet", "--local-dir", str(folder / "files")]


def _home(hub: Hub, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home")}


def _best_hf(setting: Setting, hub: Hub, repo: str, files: int) -> tuple[str, Mapping[str, str], list[str]]:
    """What of hf's settings makes it fastest here, by one try each: its name, environment and flags."""
    fast = {"HF_XET_HIGH_PERFORMANCE": "1"}
    settings: list[tuple[str, Mapping[str, str], list[str]]] = [("high performance", fast, [])]
    counts = (1,) if files == 1 else (1, 4, 16) if files < _MANY else (16,)
    settings += [
        (f"plain HTTP, {count} worker(s)", _PLAIN, ["--max-workers", str(count)]) for count in counts
    ]
    if files >= _MANY:
        return settings[-1]
    taken = [
        (hf(setting, hub, repo, environment, flags), name, environment, flags)
        for name, environment, flags in settings
    ]
    say("hf download: " + ", ".join(f"{name} {duration:.1f} s" for duration, name, *_ in taken))
    return min(taken, key=lambda found: found[0])[1:]


def hf(setting: Setting, hub: Hub, repo: str, environment: Mapping[str, str], flags: list[str]) -> float:
    """Seconds of `hf download` into a fresh folder, with a fresh home."""
    with new_target(setting) as folder:
        return seconds(lambda: command([*_hf(repo, folder), *flags], {**_home(hub, folder), **environment}))


def fill_of(
    setting: Setting, hub: Hub, repo: str, size: float, alone: list[float], node: list[str] | None = None
) -> float:
    """MB/s of NodeStage with fresh programs and an empty store; the worker's own goes to `alone`.

    `size` is in MB.
    """
    os.sync()
    done = fill(setting, hub_parameters(repo), {"HF_ENDPOINT": hub.endpoint}, node=node)
    alone.append(size / done.fill_seconds)
    return size / done.seconds
