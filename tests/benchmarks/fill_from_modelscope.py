"""A verified fill from a local ModelScope hub against its own client, onto the same disk."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.contents import make
from tests.benchmarks.nginx import Nginx
from tests.benchmarks.origins import in_memory
from tests.benchmarks.race import Race, Tool
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, at_least
from tests.benchmarks.volume import Setting
from tests.origins.modelscope import ModelScopeHub

_MODELSCOPE = str(Path(sys.executable).parent / "modelscope")


def measure(setting: Setting) -> Iterator[Table]:
    """The hub lists, nginx sends the files' bytes from memory.

    The client at its default and with 16 workers.
    """
    for shape in ("one", "mix", "small"):
        with (
            in_memory("modelscope") as root,
            Nginx(root) as nginx,
            ModelScopeHub(redirect_over=1, store_base=nginx.base) as hub,
        ):
            say(f"making a repository, {shape}")
            files = make(root / "org" / shape, shape, setting.total)
            hub.repo(f"org/{shape}", files)
            yield _race(setting, hub, f"org/{shape}", files)


def _race(setting: Setting, hub: ModelScopeHub, repo: str, files: Mapping[str, Path]) -> Table:
    def client(*flags: str) -> Tool:
        def environment(folder: Path) -> dict[str, str]:
            return {
                "MODELSCOPE_ENDPOINT": hub.endpoint,
                "MODELSCOPE_CACHE": str(folder / "cache"),
                "HOME": str(folder / "home"),
            }

        argv = [_MODELSCOPE, "download", "--model", repo, *flags, "--local_dir"]
        return Tool(lambda folder: [*argv, str(folder / "files")], environment, at_least(2.0))

    parameters = {"repoSource": "ModelScope/Model", "repoId": repo}
    tools = {
        "modelscope download": client(),
        "modelscope download, 16 workers": client("--max-workers", "16"),
    }
    return Race(
        "Verified fill from ModelScope", files, parameters, tools, {"MODELSCOPE_ENDPOINT": hub.endpoint}
    ).run(setting)
