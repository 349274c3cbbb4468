"""Files of one image in the store: a folder of known names, any of which may be missing."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

from csi.errors import DataCacheError
from csi.linux.durable_files import read_json, write_json

FACTS_FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ImageState(enum.StrEnum):
    """Whether an image can be mounted."""

    PARTIAL = "partial"
    SEALED = "sealed"


@dataclass(frozen=True)
class ImagePaths:
    """The files of the image in `folder`; any of them may be missing."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """The manifest, as `Manifest.write` writes it; without it there is no image."""
        return self.folder / "manifest"

    @property
    def image(self) -> Path:
        """The sealed image, read-only."""
        return self.folder / "image"

    @property
    def partial(self) -> Path:
        """The image while it is being filled."""
        return self.folder / "image.partial"

    @property
    def journal(self) -> Path:
        """The journal of the fill."""
        return self.folder / "journal"

    @property
    def facts(self) -> Path:
        """The record of the image's digest and size."""
        return self.folder / "facts.json"

    @property
    def provenance(self) -> Path:
        """The record of where the bytes are known to come from."""
        return self.folder / "places.json"

    @property
    def progress(self) -> Path:
        """The progress of a running fill; removed with it."""
        return self.folder / "progress.json"

    @property
    def last_used_mark(self) -> Path:
        """An empty file whose modification time is when the image was last used."""
        return self.folder / "used"


@dataclass(frozen=True)
class ImageRecord:
    """An image in the store.

    `size` is its bytes when complete, `allocated` what the file system uses for it now, `last_used` seconds
    since 1970.
    """

    digest: str
    state: ImageState
    size: int
    allocated: int
    last_used: float
    paths: ImagePaths


def is_digest(text: str) -> bool:
    """Return whether `text` is the digest of a manifest: 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def write_facts(paths: ImagePaths, digest: str, size: int) -> None:
    """Record durably that the image of `digest` has `size` bytes; raises OSError."""
    write_json(paths.facts, {"format": FACTS_FORMAT, "digest": digest, "image_bytes": size})


def read_record(paths: ImagePaths) -> ImageRecord | None:
    """Read the image in a folder; return None if it is unusable.

    It is unusable without a manifest, or if partial without its facts.
    """
    # A worker may seal the image (rename it) between the checks of single files. That happens only once, so a
    # second look is enough.
    return _read_once(paths) or _read_once(paths)


def _read_once(paths: ImagePaths) -> ImageRecord | None:
    try:
        last_used = max(
            paths.manifest.stat().st_mtime,
            paths.last_used_mark.stat().st_mtime if paths.last_used_mark.exists() else 0.0,
        )
        if paths.image.exists():
            status = paths.image.stat()
            return ImageRecord(
                paths.folder.name, ImageState.SEALED, status.st_size, status.st_blocks * 512, last_used, paths
            )
        size = int(read_json(paths.facts, FACTS_FORMAT)["image_bytes"])
        allocated = paths.partial.stat().st_blocks * 512 if paths.partial.exists() else 0
        return ImageRecord(paths.folder.name, ImageState.PARTIAL, size, allocated, last_used, paths)
    except (FileNotFoundError, KeyError, ValueError, TypeError, DataCacheError):
        return None
