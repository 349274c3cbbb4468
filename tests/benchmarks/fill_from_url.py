"""A fill from plain URLs against curl, onto the same disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.contents import make
from tests.benchmarks.nginx import Nginx
from tests.benchmarks.origins import in_memory
from tests.benchmarks.race import Race, Tool
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, at_least
from tests.benchmarks.volume import Setting


def measure(setting: Setting) -> Iterator[Table]:
    """nginx sends the files from memory. The sums are given, so ours are verified; curl checks none. A volume has at most 1,000 URLs."""
    for shape in ("one", "thousand"):
        with in_memory("url") as root, Nginx(root) as nginx:
            say(f"making files, {shape}")
            yield _race(setting, nginx, make(root, shape, setting.total))


def _race(setting: Setting, nginx: Nginx, files: Mapping[str, Path]) -> Table:
    urls = {name: f"{nginx.base}/{name}" for name in files}
    parameters = {"type": "URL", "url": "\n".join(f"{name}={url}" for name, url in urls.items()), "sha256": ",".join(map(_sum, files.values()))}

    def curl(*flags: str) -> Tool:
        return Tool(lambda folder: ["curl", "-sSf", "--create-dirs", *flags, *_targets(folder, urls)], goal=at_least(1.0))

    tools = {"curl": curl(), "curl --parallel": curl("--parallel", "--parallel-max", "16")}
    return Race("Verified fill from URLs (nginx)", files, parameters, tools).run(setting)


def _targets(folder: Path, urls: Mapping[str, str]) -> list[str]:
    return [word for name, url in urls.items() for word in ("-o", str(folder / name), url)]


def _sum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
