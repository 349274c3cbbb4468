"""A fill from plain URLs against curl, onto the same disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

from tests.benchmarks.contents import make
from tests.benchmarks.nginx import Nginx
from tests.benchmarks.origins import in_memory
from tests.benchmarks.race import Race, Tool
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, at_least
from tests.benchmarks.volume import Setting

_DOCUMENT = "files.meta4"
# With more at once, curl takes longer for thousands of files here.
_AT_ONCE = {"one": "16", "small": "4"}


def measure(setting: Setting) -> Iterator[Table]:
    """nginx sends the files from memory. Ours are named by a Metalink document with their sums, and verified.

    curl has a list, and checks none.
    """
    for shape, at_once in _AT_ONCE.items():
        with in_memory("url") as root, Nginx(root) as nginx:
            say(f"making files, {shape}")
            yield _race(setting, nginx, make(root, shape, setting.total), at_once)


def _race(setting: Setting, nginx: Nginx, files: Mapping[str, Path], at_once: str) -> Table:
    def curl(*flags: str) -> Tool:
        return Tool(
            lambda folder: [
                "curl",
                "-sSf",
                "--create-dirs",
                *flags,
                "--config",
                str(_list(setting, nginx, files, folder)),
            ],
            goal=at_least(1.0),
        )

    (nginx.root / _DOCUMENT).write_text(_metalink(nginx, files))
    tools = {"curl": curl(), "curl --parallel": curl("--parallel", "--parallel-max", at_once)}
    return Race(
        "Verified fill from URLs (nginx)",
        files,
        {"type": "URL", "metalink": f"{nginx.base}/{_DOCUMENT}"},
        tools,
    ).run(setting)


def _metalink(nginx: Nginx, files: Mapping[str, Path]) -> str:
    items = (
        f"<file name={quoteattr(name)}><size>{path.stat().st_size}</size>"
        f'<hash type="sha-256">{_sum(path)}</hash><url>{nginx.base}/{name}</url></file>\n'
        for name, path in files.items()
    )
    return f'<metalink xmlns="urn:ietf:params:xml:ns:metalink">\n{"".join(items)}</metalink>\n'


def _list(setting: Setting, nginx: Nginx, files: Mapping[str, Path], folder: Path) -> Path:
    """curl's list of what to fetch where."""
    config = setting.folder / "curl.list"
    config.write_text("".join(f'url = "{nginx.base}/{name}"\noutput = "{folder / name}"\n' for name in files))
    return config


def _sum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
