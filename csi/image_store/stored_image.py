"""Objects of one image in the image store: its parts, and the record that makes them an image.

images/<digest>/manifest        the manifest, as in a node's store
images/<digest>/parts/<sha256>  PART_BYTES of the image each, except the last
images/<digest>/index.json      the record, written last: if it exists, the image is complete
images/<digest>/unwanted        a mark: nobody has wanted the image since it was written
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
from csi.parameters.data_cache import snapshot_id_for

STORED_IMAGE_FORMAT = 1
IMAGES_FOLDER = "images"
# A part is held in memory while it is sent, by several threads; S3 charges by request.
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
    """The record of an image.

    `digest` is that of its manifest, `image_bytes` its size, `content_bytes` the sum of its files. `parts`
    are sha256 checksums (hex) in the order of the image; the first part begins at image byte `data_offset`,
    as everything before it follows from the manifest. `access` is the pinned spec of an origin known to
    hold its bytes: the image was filled from there or verified against it. `layout_format` is the format of
    the layout, `stored_at` seconds since 1970.
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
        """The id of the image in ECI's API."""
        return snapshot_id_for(self.digest)

    def encode(self) -> bytes:
        """Encode the record as JSON."""
        record = {
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
        return json.dumps(record, sort_keys=True).encode()

    @staticmethod
    def decode(content: bytes, digest: str) -> StoredImage:
        """Decode the record of the image `digest`; raises CorruptContent for any other content."""
        try:
            values: dict[str, Any] = json.loads(content)
            if values.pop("format") != STORED_IMAGE_FORMAT:
                raise ValueError("unknown format")
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
                f"the image store's record of {digest[:12]} is damaged ({error}); "
                f"remove images/{digest} there"
            ) from error

    def check_consistency(self, digest: str) -> None:
        """Raise ValueError unless the record belongs to the image `digest` and is consistent."""
        count = -(-(self.image_bytes - self.data_offset) // self.part_bytes)
        if self.digest != digest or not all(map(is_digest, self.parts)):
            raise ValueError("it belongs to another image")
        if (
            any(size % _BLOCK for size in (self.part_bytes, self.image_bytes, self.data_offset))
            or len(self.parts) != count
        ):
            raise ValueError(
                f"{len(self.parts)} parts of {self.part_bytes} bytes do not make {self.image_bytes} bytes"
            )
        if not isinstance(self.content_bytes, int) or not all(
            isinstance(text, str) for pair in self.access.items() for text in pair
        ):
            raise ValueError("its size or origin cannot be read")
        if not 0 <= self.stored_at < _MAX_STORED_AT:
            raise ValueError("its time is out of range")

    def part_size(self, number: int) -> int:
        """Return the size in bytes of a part, numbered from 0."""
        return min(self.part_bytes, self.image_bytes - self.data_offset - number * self.part_bytes)

    def build_parts_layout(self, metadata: bytes) -> Layout:
        """Build a layout whose files are the parts, so that a fill verifies each part and can be resumed."""
        entries = [
            # Numbered names: a fill reads in this order, and equal parts (zeros) must still be distinct
            # entries.
            Entry(f"{number:06}", EntryKind.FILE, size=self.part_size(number), digest=f"sha256:{part}")
            for number, part in enumerate(self.parts)
        ]
        extents = tuple(
            Extent(entry, self.data_offset + number * self.part_bytes) for number, entry in enumerate(entries)
        )
        return Layout(Manifest(tuple(entries), {}), self.image_bytes, metadata, extents)


def image_folder(digest: str) -> str:
    """Return the folder of all objects of an image."""
    return f"{IMAGES_FOLDER}/{digest}"


def index_key(digest: str) -> str:
    """Return the key of the record that makes an image complete."""
    return f"{image_folder(digest)}/index.json"


def manifest_key(digest: str) -> str:
    """Return the key of the manifest."""
    return f"{image_folder(digest)}/manifest"


def parts_folder(digest: str) -> str:
    """Return the folder of the parts."""
    return f"{image_folder(digest)}/parts"


def unwanted_key(digest: str) -> str:
    """Return the key of the mark that nobody wants the image."""
    return f"{image_folder(digest)}/unwanted"
