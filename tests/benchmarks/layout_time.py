"""The layout of 100,000 files, from the manifest alone."""

from __future__ import annotations

from csi.images.layout.layout import build_layout
from csi.manifest.manifest import Entry, EntryKind, Manifest, build_manifest
from csi.worker_process.__main__ import reduce_gc_frequency
from tests.benchmarks.rounds import interleaved, seconds
from tests.benchmarks.table import Table, at_most
from tests.benchmarks.volume import Setting

FILES = 100_000


def measure(setting: Setting) -> list[Table]:
    """Seconds of one thread, with the settings of a worker process.

    Building the manifest is told beside it.
    """
    reduce_gc_frequency()
    entries = [
        Entry(
            f"part-{n % 100:02}/shard-{n % 1000:03}/{n:06}.json",
            EntryKind.FILE,
            size=1000 + n,
            digest=f"git:{n:040x}",
        )
        for n in range(FILES)
    ]
    manifest = build_manifest(entries, {})
    figures = interleaved(
        max(5, setting.rounds),
        {
            "layout": lambda: seconds(lambda: build_layout(manifest)),
            "manifest": lambda: seconds(lambda: _digested(entries)),
        },
    )
    table = Table(f"Layout of {FILES} files", "s", 2)
    table.row("layout, metadata written to memory", figures["layout"], at_most(2, " s"))
    table.row("manifest checked, ordered and digested", figures["manifest"])
    table.notes.append(f"metadata: {len(build_layout(manifest).metadata) / 1e6:.1f} MB")
    return [table]


def _digested(entries: list[Entry]) -> Manifest:
    manifest = build_manifest(entries, {})
    assert manifest.digest
    return manifest
