"""Origins that are not what limits: repositories in memory, listed by the local hub, their bytes sent by
nginx or nfs-ganesha."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.contents import make
from tests.benchmarks.nginx import Nginx
from tests.benchmarks.rounds import say
from tests.origins.hub import Hub

_MEMORY = Path("/dev/shm")


@contextmanager
def in_memory(name: str) -> Iterator[Path]:
    """A folder in memory (tmpfs), so that no cache drop and no other disk user slows the origin."""
    folder = Path(tempfile.mkdtemp(prefix=f"datacache-{name}-", dir=_MEMORY))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class HubSite:
    """A hub whose large files nginx sends; `add` makes repositories below `root`."""

    def __init__(self, root: Path, hub: Hub, nginx: Nginx) -> None:
        self.root, self.hub, self.nginx = root, hub, nginx

    def add(self, repo: str, shape: str, total: int) -> dict[str, Path]:
        """A repository of the given shape and size (`contents.sizes_of`); returns its files."""
        say(f"making {repo}: {total / 2**30:.3g} GiB, {shape}")
        files = make(self.root / repo, shape, total)
        # What remembers digests is read anew for each: worth it for large files only.
        self.hub.repo(repo, files, digests=self.root / ".hub-digests" if len(files) < 1000 else None)
        return files

    def add_copy(self, repo: str, original: dict[str, Path]) -> None:
        """The same files under other names: another image of the same size."""
        (self.root / repo).mkdir(parents=True)
        copies = {f"copy-{number}{path.suffix}": path for number, path in enumerate(original.values())}
        for name, path in copies.items():
            (self.root / repo / name).symlink_to(path)
        self.hub.repo(repo, copies, digests=self.root / ".hub-digests")

    def url(self, repo: str, name: str) -> str:
        """Where nginx sends a file."""
        return f"{self.nginx.base}/{repo}/{name}"


@contextmanager
def hub_site(meek: bool = False) -> Iterator[HubSite]:
    """A hub and its nginx, without repositories yet.

    `meek`: nginx at the lowest priority, as if it were on another machine.
    """
    with in_memory("hub") as root, Nginx(root, meek) as nginx, Hub(cdn_base=nginx.base) as hub:
        yield HubSite(root, hub, nginx)
