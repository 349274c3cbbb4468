"""What the image store has of one image: its parts, and the record that makes them an image.

images/<digest>/manifest        as a node's store has it
images/<digest>/parts/<sha256>  PART_BYTES of the image each, but the last
images/<digest>/index.json      put last: where it is, the image is whole
images/<digest>/unwanted        nobody has wanted the image since this was put
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from csi.errors import CorruptContent
from csi.images.layout.layout import Extent, Layout
from csi.images.node_store.records import is_digest
from csi.linux.durable_files import check_keys
from csi.manifest.manifest import Entry, Kind, Manifest

FORMAT = 1
IMAGES = "images"
PART_BYTES = 32 * 1024 * 1024
_BLOCK = 4096
_KEYS = ("digest", "image_bytes", "content_bytes", "data_at", "parts", "access", "layout", "part_bytes", "stored_at")
_LATEST = 253_402_300_800  # the year 10000


@dataclass(frozen=True)
class StoredImage:
    """An image: `digest` of its manifest, `image_bytes` long, of files of `content_bytes`; `parts` are sha256 sums (hex) in the image's order.

    The first part begins at image byte `data_at`: what is before it follows from the manifest.
    `access` is the pinned spec that it was filled from, `layout` the layout's format, `stored_at` seconds since 1970.
    """

    digest: str
    image_bytes: int
    content_bytes: int
    data_at: int
    parts: Sequence[str]
    access: dict[str, str] = field(default_factory=dict)
    layout: int = 0
    part_bytes: int = PART_BYTES
    stored_at: float = 0.0

    @property
    def snapshot_id(self) -> str:
        """What ECI's users name it by."""
        return snapshot_id_of(self.digest)

    def encode(self) -> bytes:
        """Return the record as JSON."""
        kept = {
            "format": FORMAT,
            "digest": self.digest,
            "image_bytes": self.image_bytes,
            "content_bytes": self.content_bytes,
            "data_at": self.data_at,
            "parts": list(self.parts),
            "access": self.access,
            "layout": self.layout,
            "part_bytes": self.part_bytes,
            "stored_at": self.stored_at,
        }
        return json.dumps(kept, sort_keys=True).encode()

    @staticmethod
    def decode(content: bytes, digest: str) -> StoredImage:
        """Return the record that `encode` wrote of the image `digest`; raise CorruptContent for any other."""
        try:
            kept: dict[str, Any] = json.loads(content)
            if kept.pop("format") != FORMAT:
                raise ValueError("another format")
            check_keys(kept, *_KEYS)
            found = StoredImage(
                digest=kept["digest"],
                image_bytes=kept["image_bytes"],
                content_bytes=kept["content_bytes"],
                data_at=kept["data_at"],
                parts=kept["parts"],
                access=kept.get("access", {}),
                layout=kept.get("layout", 0),
                part_bytes=kept.get("part_bytes", PART_BYTES),
                stored_at=kept.get("stored_at", 0.0),
            )
            found.check(digest)
            return found
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise CorruptContent(f"the image store's record of {digest[:12]} is damaged ({error}); remove images/{digest} there") from error

    def check(self, digest: str) -> None:
        """Raise ValueError unless the record is one of the image `digest` and agrees with itself."""
        count = -(-(self.image_bytes - self.data_at) // self.part_bytes)
        if self.digest != digest or not all(map(is_digest, self.parts)):
            raise ValueError("it is of another image")
        if any(size % _BLOCK for size in (self.part_bytes, self.image_bytes, self.data_at)) or len(self.parts) != count:
            raise ValueError(f"{len(self.parts)} parts of {self.part_bytes} bytes are no image of {self.image_bytes}")
        if not isinstance(self.content_bytes, int) or not all(isinstance(text, str) for pair in self.access.items() for text in pair):
            raise ValueError("its size or where it came from cannot be read")
        if not 0 <= self.stored_at < _LATEST:
            raise ValueError("it came at no time that there is")

    def part_size(self, number: int) -> int:
        """The bytes of a part, numbered from 0."""
        return min(self.part_bytes, self.image_bytes - self.data_at - number * self.part_bytes)

    def in_parts(self, metadata: bytes) -> Layout:
        """The image as a fill sees it whose files are the parts: each is verified, and what was there is gone on with."""
        entries = [Entry(f"{number:06}", Kind.FILE, size=self.part_size(number), digest=f"sha256:{part}") for number, part in enumerate(self.parts)]
        extents = tuple(Extent(entry, self.data_at + number * self.part_bytes) for number, entry in enumerate(entries))
        return Layout(Manifest(tuple(entries), {}), self.image_bytes, metadata, extents)


def snapshot_id_of(digest: str) -> str:
    """What ECI's users name an image by: "s-" and the first 20 digits of its digest."""
    return f"s-{digest[:20]}"


def folder_of(digest: str) -> str:
    """Where all of an image is."""
    return f"{IMAGES}/{digest}"


def index_of(digest: str) -> str:
    """The key of the record that makes an image whole."""
    return f"{folder_of(digest)}/index.json"


def manifest_of(digest: str) -> str:
    """The key of the manifest."""
    return f"{folder_of(digest)}/manifest"


def parts_of(digest: str) -> str:
    """The folder of the parts."""
    return f"{folder_of(digest)}/parts"


def unwanted_of(digest: str) -> str:
    """The key of the mark that nobody wants an image."""
    return f"{folder_of(digest)}/unwanted"
