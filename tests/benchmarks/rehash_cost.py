"""What a restart costs: the part of a large file that was on disk already is hashed again before its fill
goes on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from csi.images.fill.repair import hash_from_disk
from csi.images.layout.chunks import CHUNK_BYTES
from csi.images.layout.layout import Extent, build_layout
from csi.images.node_store.partial_image import PartialImage
from csi.linux.aligned_memory import AlignedBuffer
from csi.manifest.manifest import Entry, EntryKind, build_manifest
from tests.benchmarks.rounds import command, drop_caches, interleaved, say, seconds
from tests.benchmarks.table import Table
from tests.benchmarks.volume import Setting


def measure(setting: Setting) -> list[Table]:
    """MB/s (10**6 bytes) of the product's own re-hashing of a sha256 file, cold, against reading alone and
    hashing alone."""
    size = setting.total // CHUNK_BYTES * CHUNK_BYTES
    layout = build_layout(
        build_manifest([Entry("model.safetensors", EntryKind.FILE, size=size, digest=f"sha256:{0:064}")], {})
    )
    path, extent = setting.folder / "image.partial", layout.extents[0]
    say(f"writing {size / 2**30:.3g} GiB")
    PartialImage.create(path, layout.size)
    with PartialImage(path, layout.size) as image:
        _write(image, extent)
        measures: dict[str, Callable[[], float]] = {
            "rehash": lambda: _cold(
                size, lambda: hash_from_disk(image, extent, extent.offset + size, lambda: None)
            ),
            "read": lambda: _cold(size, lambda: _read(path)),
            "hash": lambda: _hash(size),
        }
        figures = interleaved(setting.rounds, measures)
    table = Table(f"Re-hashing after a restart, {size / 1e9:.1f} GB of one file on disk", "MB/s")
    table.row("reading alone (dd, O_DIRECT, 8 MiB)", figures["read"])
    table.row("sha256 alone, from memory, one thread", figures["hash"])
    baselines = [("reading alone", figures["read"], None), ("sha256 alone", figures["hash"], None)]
    table.compare("re-hashing as the fill does it", figures["rehash"], baselines)
    longest = 80e3 / figures["rehash"].median
    table.notes.append(
        f"a restart in the middle of an 80 GB file costs at most {longest:.0f} s here; whole files before "
        "it are not read again"
    )
    return [table]


def _write(image: PartialImage, extent: Extent) -> None:
    view = AlignedBuffer(CHUNK_BYTES).view
    view[:] = os.urandom(CHUNK_BYTES)
    for offset in range(0, extent.entry.size, CHUNK_BYTES):
        view[:8] = offset.to_bytes(8)
        image.write(extent.offset + offset, view)
    image.sync()


def _cold(size: int, work: Callable[[], object]) -> float:
    drop_caches()
    return size / 1e6 / seconds(work)


def _read(path: Path) -> None:
    command(["dd", f"if={path}", "of=/dev/null", "bs=8M", "iflag=direct", "status=none"])


def _hash(size: int) -> float:
    running, view = hashlib.sha256(), memoryview(os.urandom(CHUNK_BYTES))
    return size / 1e6 / seconds(lambda: [running.update(view) for _ in range(size // CHUNK_BYTES)])
