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
from csi.manifest.manifest import Entry, EntryKind, Manifest

STORED_IMAGE_FORMAT = 1
IMAGES_FOLDER = "images"
PART_BYTES = 32 * 1024 * 1024
_BLOCK = 4096
_KEYS = (
    "digest",
    "image_bytes",
    "content_bytes",
    "data_at",
    "parts",
    "access",
    "layout",
    "part_bytes",
    "stored_at",
)
_MAX_STORED_AT = 253_402_300_800  # the year 10000


@dataclass(frozen=True)
class StoredImage:
    """An image: `digest` of its manifest, `image_bytes` long, of files of `content_bytes`; `parts` are sha256 sums (hex) in the image's order.

    The first part begins at image byte `data_offset`: what is before it follows from the manifest.
    `access` is the pinned spec that it was filled from, `layout_format` the layout's format, `stored_at` seconds since 1970.
    """

    digest: str
    image_bytes: int
    content_bytes: int
    data_offset: int
    parts: Sequence[str]
    access: dict[str, str] = field(default_factory=dict)
    layout_format: int = 0
    part_bytes: int = PART_BYTES
    stored_at: float = 0.0

    @property
    def snapshot_id(self) -> str:
        """What ECI's users name it by."""
        return snapshot_id_of(self.digest)

    def encode(self) -> bytes:
        """Return the record as JSON."""
        kept = {
            "format": STORED_IMAGE_FORMAT,
            "digest": self.digest,
            "image_bytes": self.image_bytes,
            "content_bytes": self.content_bytes,
            "data_at": self.data_offset,
            "parts": list(self.parts),
            "access": self.access,
            "layout": self.layout_format,
            "part_bytes": self.part_bytes,
            "stored_at": self.stored_at,
        }
        return json.dumps(kept, sort_keys=True).encode()

    @staticmethod
    def decode(content: bytes, digest: str) -> StoredImage:
        """Return the record that `encode` wrote of the image `digest`; raise CorruptContent for any other."""
        try:
            values: dict[str, Any] = json.loads(content)
            if values.pop("format") != STORED_IMAGE_FORMAT:
                raise ValueError("another format")
            check_keys(values, *_KEYS)
            stored = StoredImage(
                digest=values["digest"],
                image_bytes=values["image_bytes"],
                content_bytes=values["content_bytes"],
                data_offset=values["data_at"],
                parts=values["parts"],
                access=values.get("access", {}),
                layout_format=values.get("layout", 0),
                part_bytes=values.get("part_bytes", PART_BYTES),
                stored_at=values.get("stored_at", 0.0),
            )
            stored.check_consistency(digest)
            return stored
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise CorruptContent(
                f"the image store's record of {digest[:12]} is damaged ({error}); remove images/{digest} there"
            ) from error

    def check_consistency(self, digest: str) -> None:
        """Raise ValueError unless the record is one of the image `digest` and agrees with itself."""
        count = -(-(self.image_bytes - self.data_offset) // self.part_bytes)
        if self.digest != digest or not all(map(is_digest, self.parts)):
            raise ValueError("it is of another image")
        if (
            any(size % _BLOCK for size in (self.part_bytes, self.image_bytes, self.data_offset))
            or len(self.parts) != count
        ):
            raise ValueError(
                f"{len(self.parts)} parts of {self.part_bytes} bytes are no image of {self.image_bytes}"
            )
        if not isinstance(self.content_bytes, int) or not all(
            isinstance(text, str) for pair in self.access.items() for text in pair
        ):
            raise ValueError("its size or where it came from cannot be read")
        if not 0 <= self.stored_at < _MAX_STORED_AT:
            raise ValueError("it came at no time that there is")

    def part_size(self, number: int) -> int:
        """The bytes of a part, numbered from 0."""
        return min(self.part_bytes, self.image_bytes - self.data_offset - number * self.part_bytes)

    def build_parts_layout(self, metadata: bytes) -> Layout:
        """The image as a fill sees it whose files are the parts: each is verified, and what was there is gone on with."""
        entries = [
            Entry(f"{number:06}", EntryKind.FILE, size=self.part_size(number), digest=f"sha256:{part}")
            for number, part in enumerate(self.parts)
        ]
        extents = tuple(
            Extent(entry, self.data_offset + number * self.part_bytes) for number, entry in enumerate(entries)
        )
        return Layout(Manifest(tuple(entries), {}), self.image_bytes, metadata, extents)


def snapshot_id_of(digest: str) -> str:
    """What ECI's users name an image by: "s-" and the first 20 digits of its digest."""
    return f"s-{digest[:20]}"


def image_folder(digest: str) -> str:
    """Where all of an image is."""
    return f"{IMAGES_FOLDER}/{digest}"


def index_key(digest: str) -> str:
    """The key of the record that makes an image whole."""
    return f"{image_folder(digest)}/index.json"


def manifest_key(digest: str) -> str:
    """The key of the manifest."""
    return f"{image_folder(digest)}/manifest"


def parts_folder(digest: str) -> str:
    """The folder of the parts."""
    return f"{image_folder(digest)}/parts"


def unwanted_key(digest: str) -> str:
    """The key of the mark that nobody wants an image."""
    return f"{image_folder(digest)}/unwanted"
