"""Images in a node's store, as rows to print.

The store is only read, so any user may own it.
"""

from __future__ import annotations

import time
from pathlib import Path

from csi.images.node_store.records import ImagePaths, ImageRecord, ImageState, is_digest, read_record
from csi.images.progress import read_progress


def list_images(store: Path) -> list[tuple[str, str, str, str, str]]:
    """List the images: digest, state, size, progress of a running fill, age of the last use."""
    folders = sorted(path for path in (store / "images").glob("*") if is_digest(path.name))
    return [_build_row(record) for folder in folders if (record := read_record(ImagePaths(folder)))]


def _build_row(record: ImageRecord) -> tuple[str, str, str, str, str]:
    progress = read_progress(record.paths.progress) if record.state is ImageState.PARTIAL else None
    age = max(0.0, time.time() - record.last_used)
    return (
        record.digest[:12],
        record.state.value,
        f"{record.size / 2**20:.1f} MiB",
        progress.format() if progress else "",
        f"{age:.0f} s ago",
    )
