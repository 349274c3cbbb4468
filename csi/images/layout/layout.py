"""The layout: where every byte of an image stands, computed from the manifest alone.

An image is an uncompressed EROFS file system. Its metadata comes first (super block, inodes with short symlinks
and folders behind them, then the blocks of long ones), then each file as one run of 4 KiB-aligned bytes, in the
manifest's order. Nothing else decides it, so two nodes compute the same image independently.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from csi.errors import OutOfRange
from csi.images.layout import erofs
from csi.images.layout.erofs import BLOCK, INODE_SIZE
from csi.manifest.manifest import Entry, Kind, Manifest

FORMAT = 2
"""Goes up when the same manifest would give other bytes; a partial image of another format starts again."""

_TYPES = {
    Kind.FILE: (erofs.TYPE_FILE, erofs.IFREG),
    Kind.DIRECTORY: (erofs.TYPE_DIRECTORY, erofs.IFDIR),
    Kind.SYMLINK: (erofs.TYPE_SYMLINK, erofs.IFLNK),
}


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of one file: `entry.size` bytes from byte `offset` of the image on, then zeros up to a whole block."""

    entry: Entry
    offset: int


@dataclass(frozen=True)
class Layout:
    """An image that is not written yet.

    `size` is the image's bytes, a multiple of 4096; `metadata` stands at offset 0 and is a multiple of 4096 long;
    `extents` are the files with bytes, ascending, without a gap between their blocks.
    """

    manifest: Manifest
    size: int
    metadata: bytes
    extents: tuple[Extent, ...]


@dataclass(slots=True)
class _Node:
    """An entry on its way into the image; `at` is its inode's byte."""

    entry: Entry
    size: int = 0
    at: int = 0
    block: int = erofs.NO_BLOCK
    nlink: int = 1
    inline: bool = False


@dataclass(slots=True)
class _Folder(_Node):
    """A folder; `names` are sorted bytes with their nodes, `ends` where each block of them ends."""

    names: list[tuple[bytes, _Node]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def is_laid_out(image: Path, layout: Layout) -> bool:
    """Whether the file at `image` is one of `layout`: as long, and beginning with its metadata. Raises OSError."""
    with image.open("rb") as stream:
        return os.fstat(stream.fileno()).st_size == layout.size and stream.read(len(layout.metadata)) == layout.metadata


def has_root(image: Path) -> bool:
    """Whether the super block of the file at `image` leads to a folder, without which no kernel mounts it. Raises OSError.

    Format 1 named the wrong place where the root did not fit behind the super block; all its other images are as format 2 has them.
    """
    with image.open("rb") as stream:
        root = erofs.root_of(stream.read(BLOCK))
        if root is None:
            return False
        stream.seek(root)
        return erofs.is_folder(stream.read(INODE_SIZE))


def lay_out(manifest: Manifest) -> Layout:
    """The layout of `manifest`; raises OutOfRange when the image would be over 16 TiB (32-bit block numbers)."""
    nodes = _tree(manifest)
    for node in nodes:
        _measure(node)
    end = _place_inodes(nodes)
    data_block = _place_metadata_blocks(nodes, erofs.blocks(end))
    extents, image_blocks = _place_files(nodes, data_block)
    if image_blocks > erofs.MAX_BLOCKS:
        raise OutOfRange(f"the content needs an image of {image_blocks * BLOCK} bytes; one image holds at most {erofs.MAX_BLOCKS * BLOCK}")
    metadata = bytearray(data_block * BLOCK)
    sb = erofs.super_block(len(nodes), image_blocks, bytes.fromhex(manifest.digest[:32]), nodes[0].at)
    metadata[erofs.SUPER_OFFSET : erofs.FIRST_INODE] = sb
    for number, node in enumerate(nodes, 1):
        _write(metadata, node, number)
    _part(nodes)
    erofs.seal_super_block(metadata)
    return Layout(manifest, image_blocks * BLOCK, bytes(metadata), tuple(extents))


def _tree(manifest: Manifest) -> list[_Node]:
    """All nodes, the root first, then in the manifest's order (a folder before what is in it)."""
    root = _folder(Entry("", Kind.DIRECTORY, mode=0o555), None)
    folders: dict[str, _Folder] = {"": root}
    nodes: list[_Node] = [root]
    for entry in manifest.entries:
        parent_path, _, name = entry.path.rpartition("/")
        parent = folders[parent_path]
        node: _Node
        if entry.kind is Kind.DIRECTORY:
            node = folders[entry.path] = _folder(entry, parent)
            parent.nlink += 1
        else:
            node = _Node(entry, entry.size)
        parent.names.append((name.encode(), node))
        nodes.append(node)
    return nodes


def _folder(entry: Entry, parent: _Folder | None) -> _Folder:
    node = _Folder(entry, nlink=2)
    node.names = [(b".", node), (b"..", parent or node)]
    return node


def _part(nodes: list[_Node]) -> None:
    """Folders and what is in them name each other: nodes would stay in memory, 300 bytes a file, until garbage is looked for."""
    for node in nodes:
        if isinstance(node, _Folder):
            node.names.clear()


def _measure(node: _Node) -> None:
    """Set what of a folder or symlink follows from its own content: its size, and whether it stands behind its inode."""
    if node.entry.kind is Kind.FILE:
        return
    if not isinstance(node, _Folder):
        node.size = len(_target(node.entry))
    else:
        # Names can sort before '.', so the manifest's order is not enough.
        node.names.sort(key=lambda pair: pair[0])
        names = [name for name, _ in node.names]
        node.ends = erofs.split_names(names)
        node.size = erofs.directory_size(names, node.ends)
    node.inline = INODE_SIZE + node.size <= BLOCK


def _target(entry: Entry) -> bytes:
    return entry.target.encode(errors="surrogateescape")


def _place_inodes(nodes: list[_Node]) -> int:
    """Give every node its inode's byte; an inode and what is behind it never cross a block. Returns the end."""
    at = erofs.FIRST_INODE
    for node in nodes:
        need = INODE_SIZE + (node.size if node.inline else 0)
        if at % BLOCK + need > BLOCK:
            at = erofs.aligned(at)
        node.at = at
        at += -(-need // INODE_SIZE) * INODE_SIZE
    return at


def _place_metadata_blocks(nodes: list[_Node], block: int) -> int:
    """Give blocks, from `block` on, to the folders and symlinks that are too long to stand behind their inode."""
    for node in nodes:
        if node.entry.kind is not Kind.FILE and not node.inline:
            node.block = block
            block += erofs.blocks(node.size)
    return block


def _place_files(nodes: list[_Node], block: int) -> tuple[list[Extent], int]:
    """Give blocks to all files with bytes; returns their extents and the block behind the last."""
    extents = []
    for node in nodes:
        if node.entry.kind is Kind.FILE and node.size:
            node.block = block
            extents.append(Extent(node.entry, block * BLOCK))
            block += erofs.blocks(node.size)
    return extents, block


def _write(metadata: bytearray, node: _Node, number: int) -> None:
    entry = node.entry
    data = erofs.INLINE if node.inline else erofs.PLAIN
    mode = _TYPES[entry.kind][1] | entry.mode
    erofs.write_inode(
        metadata, node.at, number=number, data=data, mode=mode, size=node.size, block=node.block,
        uid=entry.uid, gid=entry.gid, mtime_ns=entry.mtime_ns, nlink=node.nlink,
    )  # fmt: skip
    if entry.kind is Kind.FILE:
        return
    at = node.at + INODE_SIZE if node.inline else node.block * BLOCK
    content = _directory(node) if isinstance(node, _Folder) else _target(entry)
    metadata[at : at + len(content)] = content


def _directory(node: _Folder) -> bytes:
    names = [(name, child.at, _TYPES[child.entry.kind][0]) for name, child in node.names]
    starts = [0, *node.ends[:-1]]
    parts = [erofs.directory_block(names[start:end]) for start, end in zip(starts, node.ends, strict=True)]
    return b"".join([*(part.ljust(BLOCK, b"\0") for part in parts[:-1]), parts[-1]])
