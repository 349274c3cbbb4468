"""Two revisions of one source on file systems of every kind, and images of them that are filled for real."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from csi.images.fill.fill import fill, seal
from csi.images.layout.layout import Layout, build_layout
from csi.images.node_store.records import ImagePaths
from csi.manifest.manifest import Entry, EntryKind, Manifest, build_manifest
from tests.csi.images.origin import FakeOrigin
from tests.csi.images.trees import digest_of
from tests.kernel.disks import disk

MIB = 2**20
FORMS = ("sha256", "git", "token")
Contents = Mapping[str, bytes]


def first(scale: int = MIB // 2) -> dict[str, bytes]:
    """One large file, some of a chunk and a half, and a crowd of small ones: about 40 times `scale`."""
    make = random.Random(7).randbytes
    return {
        "model.bin": make(25 * scale + 5),
        **{f"shards/{n}.bin": make(3 * scale // 2 + n) for n in range(6)},
        **{f"small/{n:03d}.json": make(scale // 64 + 31 * n) for n in range(300)},
    }


def second(old: Contents) -> dict[str, bytes]:
    """`old` with one shard changed (4 %), one file gone, a new small one, and two files at other paths."""
    new = {path: data for path, data in old.items() if path != "small/007.json"}
    new["shards/3.bin"] = bytes(reversed(old["shards/3.bin"]))
    new["new/config.json"] = b"{}" * 50
    new["a/moved.bin"] = new.pop("shards/1.bin")
    new["z/moved.json"] = new.pop("small/100.json")
    return new


def manifest_of(contents: Contents, form: str = "sha256") -> Manifest:
    def digest(path: str, data: bytes) -> str:
        chosen = FORMS[len(data) % 3] if form == "all" else form
        # A token is of one file's identity and time, and goes with it to another path.
        return (
            digest_of(data, "sha256").replace("sha256", "token")
            if chosen == "token"
            else digest_of(data, chosen)
        )

    return build_manifest(
        [
            Entry(path, EntryKind.FILE, len(data), digest=digest(path, data))
            for path, data in contents.items()
        ],
        {},
    )


class Image:
    """An image of `contents` at `folder`, and the origin that has them."""

    def __init__(self, folder: Path, contents: Contents, form: str = "all", log: Path | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.contents, self.paths = contents, ImagePaths(folder)
        self.manifest = manifest_of(contents, form)
        self.layout: Layout = build_layout(self.manifest)
        self.origin = FakeOrigin(contents=contents, log=log)
        with self.paths.manifest.open("wb") as stream:
            self.manifest.write(stream)

    def fill(self, donors: Sequence[Image] = (), **more: object) -> None:
        """Fill it, but do not seal it."""
        options: dict[str, object] = {
            "reuse_candidates": [donor.paths for donor in donors],
            "max_connections": 2,
            "chunk_bytes": MIB,
            **more,
        }
        fill(self.layout, self.paths.partial, self.paths.journal, self.origin.open, **options)  # type: ignore[arg-type]

    def seal(self) -> None:
        seal(self.paths.partial, self.paths.image, self.paths.journal)

    def expected(self) -> bytes:
        """The image's bytes, plainly."""
        whole = bytearray(self.layout.size)
        whole[: len(self.layout.metadata)] = self.layout.metadata
        for extent in self.layout.extents:
            whole[extent.offset : extent.offset + extent.entry.size] = self.contents[extent.entry.path]
        return bytes(whole)

    def check(self) -> None:
        path = self.paths.image if self.paths.image.exists() else self.paths.partial
        assert path.read_bytes() == self.expected()


def sealed(folder: Path, contents: Contents, form: str = "all") -> Image:
    image = Image(folder, contents, form)
    image.fill()
    image.seal()
    return image


def used(folder: Path) -> int:
    """Bytes that the file system of `folder` has given out, all written to its disk."""
    subprocess.run(["sync", "-f", str(folder)], check=True)
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def cached(path: Path) -> int:
    """Bytes of a file that the page cache has."""
    shown = subprocess.run(
        ["fincore", "-nb", "-o", "RES", str(path)], capture_output=True, text=True, check=True
    )
    return int(shown.stdout)


@contextmanager
def on(kind: str, folder: Path, size: int = 512 * MIB) -> Iterator[Callable[[str], Path]]:
    """Names folders on a file system of its own for the block."""
    with disk(folder, size, kind) as root:
        yield lambda name: root / name
