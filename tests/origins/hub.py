"""A model hub on loopback that the real clients can talk to: `with Hub() as hub: hub.repo("org/name",
{...})`.

As a program (`python -m tests.origins.hub --root DIR`) it serves folders: DIR/org/name is a model,
DIR/datasets/org/name a dataset. It prints its address and runs until it is told to stop.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

from tests.origins.faults import Counters, Faults
from tests.origins.hub_api import PAGE, CdnHandler, HubHandler, signature
from tests.origins.listener import Listener
from tests.origins.repositories import LFS_OVER, Files, Repository, files_below

# Two addresses of loopback, so that they are two hosts to every client.
HUB_ADDRESS, CDN_ADDRESS = "127.0.0.1", "127.0.0.2"


class Hub:
    """The hub (`endpoint`) and the host its large files come from (`cdn`).

    `redirects=False` serves large files from the hub itself; `relative_redirects` sends small ones through a
    second address on the same host, as the public hub does; `cdn_base` redirects large files there (an nginx
    whose root is `--root`) in place of the own second listener; `page` is the most entries in one answer of
    the tree.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        redirects: bool = True,
        relative_redirects: bool = False,
        cdn_base: str = "",
        page: int = PAGE,
        url_life: float = 3600.0,
        addresses: tuple[str, str] = (HUB_ADDRESS, CDN_ADDRESS),
    ) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: dict[str, str] = {}
        self.faults, self.counters = Faults(), Counters()
        self.redirects, self.relative_redirects, self.cdn_base = (
            redirects,
            relative_redirects,
            cdn_base.rstrip("/"),
        )
        self.page, self.url_life = page, url_life
        self.signing_key = b"first"
        self._listeners: list[Listener] = []
        self._addresses, self._ports = addresses, (port, 0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, if it does not yet; after a `stop`, on the same ports."""
        if self._listeners:
            return
        hub, cdn = zip(self._addresses, self._ports, strict=True)
        self._listeners = [
            Listener("hub", hub, HubHandler, self, self.faults, self.counters),
            Listener("cdn", cdn, CdnHandler, self, self.faults, self.counters),
        ]
        self._ports = (self._listeners[0].port, self._listeners[1].port)

    def stop(self) -> None:
        """Refuse new connections and cut the open ones; repositories and counters stay."""
        for listener in self._listeners:
            listener.stop()
        self._listeners = []

    @property
    def endpoint(self) -> str:
        return f"http://{self._addresses[0]}:{self._ports[0]}"

    @property
    def cdn(self) -> str:
        return f"http://{self._addresses[1]}:{self._ports[1]}"

    def repo(
        self,
        name: str,
        files: Files,
        *,
        kind: str = "model",
        private: bool = False,
        gated: bool = False,
        xet: bool = False,
        tokens: Iterable[str] = (),
        granted: Iterable[str] = (),
        lfs_over: int = LFS_OVER,
        digests: Path | None = None,
    ) -> Repository:
        """A new repository with one commit on main.

        `tokens` may see it, `granted` may also read it when gated; both become valid tokens.
        """
        readers, granted = set(tokens) | set(granted), set(granted)
        repository = Repository(kind, name, private, gated, xet, readers, granted)
        repository.commit(files, lfs_over=lfs_over, digests=digests)
        self.repositories[kind, name] = repository
        self.tokens.update({token: f"user{len(self.tokens) + n}" for n, token in enumerate(sorted(readers))})
        return repository

    def revoke(self, token: str) -> None:
        """The token is not known any more."""
        self.tokens.pop(token, None)

    def expire_urls(self) -> None:
        """Every signed address given out so far is refused from now on."""
        self.signing_key += b"+"

    def signed(self, repository: Repository, path: str, sha256: str) -> str:
        """Where the bytes of a large file are, for `url_life` seconds."""
        if self.cdn_base:
            folder = "datasets/" if repository.kind == "dataset" else ""
            return f"{self.cdn_base}/{folder}{quote(repository.id)}/{quote(path)}"
        target = f"/{repository.kind}/{quote(repository.id, safe='')}/{quote(path)}"
        expires = f"{time.time() + self.url_life:.3f}"
        query = {
            "Content": sha256,
            "Expires": expires,
            "Signature": signature(self.signing_key, target, expires),
        }
        return f"{self.cdn}{target}?{urlencode(query)}"


def serve_folder(hub: Hub, root: Path, lfs_over: int) -> None:
    """Make every DIR/org/name a model and every DIR/datasets/org/name a dataset.

    What was hashed is remembered in DIR/.hub-digests.
    """
    datasets = root / "datasets"
    models = [folder for folder in sorted(root.glob("*/*")) if folder.parent != datasets]
    for kind, base, folders in (("model", root, models), ("dataset", datasets, sorted(datasets.glob("*/*")))):
        for folder in filter(Path.is_dir, folders):
            name = str(folder.relative_to(base))
            repository = hub.repo(
                name, files_below(folder), kind=kind, lfs_over=lfs_over, digests=root / ".hub-digests"
            )
            print(f"{kind} {name} at {repository.branches['main']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with org/name/... and datasets/org/name/..."
    )
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="bytes per second over all connections (default: no limit)"
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument(
        "--lfs-over",
        type=int,
        default=LFS_OVER,
        help="files over this many bytes are large files, whatever their name",
    )
    parser.add_argument(
        "--lfs-base", default="", help="redirect large files to this URL, whose root is the same folder"
    )
    parser.add_argument(
        "--no-redirects", action="store_true", help="send large files from the hub's own address"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Hub(port=options.port, redirects=not options.no_redirects, cdn_base=options.lfs_base) as hub:
        hub.faults.latency, hub.faults.rate = options.latency, options.rate or None
        serve_folder(hub, options.root, options.lfs_over)
        print(f"HF_ENDPOINT={hub.endpoint}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
