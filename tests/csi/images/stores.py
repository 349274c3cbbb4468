"""What the tests of the store share: a store of 100 MiB and images in it."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.images.layout import erofs
from csi.images.layout.layout import build_layout
from csi.images.node_store.records import ImageState
from csi.images.node_store.store import Store
from csi.manifest.manifest import Manifest, build_manifest
from tests.csi.images.trees import file

MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", 100 * MIB) as opened:
        yield opened


def manifest_of(name: str, size: int = 10_000) -> Manifest:
    return build_manifest([file(name, size)], {"source": name})


def adopt(store: Store, manifest: Manifest) -> str:
    temp = store.new_temp_path()
    with temp.open("wb") as stream:
        manifest.write(stream)
    store.adopt_manifest(manifest.digest, temp, build_layout(manifest).size)
    assert not temp.exists()
    return manifest.digest


_METADATA = build_layout(manifest_of("any")).metadata


def as_format_1(image: Path) -> None:
    """Give the image the super block of layout format 1, which took the root to stand right behind it."""
    first = bytearray(image.read_bytes()[: erofs.BLOCK])
    struct.pack_into("<H", first, erofs.SUPER_OFFSET + 14, erofs.FIRST_INODE >> 5)
    struct.pack_into("<I", first, erofs.SUPER_OFFSET + 4, 0)
    erofs.write_super_block_checksum(first)
    image.chmod(0o600)
    with image.open("r+b") as stream:
        stream.write(first)
    image.chmod(0o400)


def put(store: Store, name: str, size: int, used: float, state: ImageState = ImageState.SEALED) -> str:
    """An image of `size` bytes that was last used `used` seconds after 2033, without the cost of real
    content."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    temp = store.new_temp_path()
    temp.write_bytes(b"manifest")
    paths = store.adopt_manifest(digest, temp, size).paths
    file_path = paths.image if state is ImageState.SEALED else paths.partial
    with file_path.open("wb") as stream:
        stream.write(_METADATA)
        os.posix_fallocate(stream.fileno(), 0, size)
    store.touch(digest)
    os.utime(paths.last_used_mark, (2 * 10**9 + used,) * 2)
    return digest


def want(store: Store, name: str, size: int) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    temp = store.new_temp_path()
    temp.write_bytes(b"manifest")
    store.adopt_manifest(digest, temp, size)
    return digest


def names(store: Store) -> set[str]:
    return {record.digest for record in store.list_images()}
