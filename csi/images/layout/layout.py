"""The layout: the offset of every byte of an image, computed from the manifest alone.

An image is an uncompressed EROFS file system. Its metadata comes first (super block, inodes with short
symlinks and folders after them, then the blocks of long ones), then each file as one run of 4 KiB-aligned
bytes, in the order of the manifest. There is no other input, so two nodes compute the same image
independently.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from csi.errors import OutOfRange
from csi.images.layout import erofs
from csi.images.layout.erofs import BLOCK, INODE_SIZE
from csi.manifest.manifest import Entry, EntryKind, Manifest

LAYOUT_FORMAT = 2
"""Incremented whenever the same manifest gives other bytes; a partial image of another format is filled
from scratch.
"""

_INODE_TYPES = {
    EntryKind.FILE: (erofs.TYPE_FILE, erofs.IFREG),
    EntryKind.DIRECTORY: (erofs.TYPE_DIRECTORY, erofs.IFDIR),
    EntryKind.SYMLINK: (erofs.TYPE_SYMLINK, erofs.IFLNK),
}


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes of one file: `entry.size` bytes from byte `offset` of the image.

    Zeros follow up to a whole block.
    """

    entry: Entry
    offset: int


@dataclass(frozen=True)
class Layout:
    """An image that is not written yet.

    `size` is the image's bytes, a multiple of 4096; `metadata` is at offset 0 and a multiple of 4096 long;
    `extents` are the non-empty files in ascending order, without gaps between their blocks.
    """

    manifest: Manifest
    size: int
    metadata: bytes
    extents: tuple[Extent, ...]


@dataclass(slots=True)
class _Node:
    """An entry being placed in the image; `inode_offset` is the byte offset of its inode."""

    entry: Entry
    size: int = 0
    inode_offset: int = 0
    block: int = erofs.NO_BLOCK
    nlink: int = 1
    inline: bool = False


@dataclass(slots=True)
class _Folder(_Node):
    """A folder.

    `children` are sorted names with their nodes, `block_ends` the index where each directory block ends.
    """

    children: list[tuple[bytes, _Node]] = field(default_factory=list)
    block_ends: list[int] = field(default_factory=list)


def matches_layout(image: Path, layout: Layout) -> bool:
    """Return whether the file at `image` has this layout: its size and its metadata. Raises OSError."""
    with image.open("rb") as stream:
        return (
            os.fstat(stream.fileno()).st_size == layout.size
            and stream.read(len(layout.metadata)) == layout.metadata
        )


def has_root_directory(image: Path) -> bool:
    """Return whether the super block of `image` points to a folder, without which no kernel mounts it.

    Format 1 had a wrong offset if the root did not fit after the super block; its other images are the same
    as in format 2. Raises OSError.
    """
    with image.open("rb") as stream:
        root = erofs.read_root_offset(stream.read(BLOCK))
        if root is None:
            return False
        stream.seek(root)
        return erofs.is_directory_inode(stream.read(INODE_SIZE))


def build_layout(manifest: Manifest) -> Layout:
    """Compute the layout of `manifest`.

    Raises OutOfRange if the image would exceed 16 TiB (32-bit block numbers).
    """
    nodes = _build_tree(manifest)
    for node in nodes:
        _set_size(node)
    end = _assign_inode_offsets(nodes)
    data_block = _assign_metadata_blocks(nodes, erofs.count_blocks(end))
    extents, image_blocks = _assign_file_blocks(nodes, data_block)
    if image_blocks > erofs.MAX_BLOCKS:
        raise OutOfRange(
            f"the content needs an image of {image_blocks * BLOCK} bytes; "
            f"one image holds at most {erofs.MAX_BLOCKS * BLOCK}"
        )
    # The UUID is part of the digest, so that everything in the image follows from the manifest.
    metadata = bytearray(data_block * BLOCK)
    super_block = erofs.build_super_block(
        len(nodes), image_blocks, bytes.fromhex(manifest.digest[:32]), nodes[0].inode_offset
    )
    metadata[erofs.SUPER_OFFSET : erofs.FIRST_INODE] = super_block
    for number, node in enumerate(nodes, 1):
        _write_node(metadata, node, number)
    _break_cycles(nodes)
    erofs.write_super_block_checksum(metadata)
    return Layout(manifest, image_blocks * BLOCK, bytes(metadata), tuple(extents))


def _build_tree(manifest: Manifest) -> list[_Node]:
    """Create all nodes: the root first, then in manifest order (a folder before its contents)."""
    root = _create_folder(Entry("", EntryKind.DIRECTORY, mode=0o555), None)
    folders: dict[str, _Folder] = {"": root}
    nodes: list[_Node] = [root]
    for entry in manifest.entries:
        parent_path, _, name = entry.path.rpartition("/")
        parent = folders[parent_path]
        node: _Node
        if entry.kind is EntryKind.DIRECTORY:
            node = folders[entry.path] = _create_folder(entry, parent)
            parent.nlink += 1
        else:
            node = _Node(entry, entry.size)
        parent.children.append((name.encode(), node))
        nodes.append(node)
    return nodes


def _create_folder(entry: Entry, parent: _Folder | None) -> _Folder:
    node = _Folder(entry, nlink=2)
    node.children = [(b".", node), (b"..", parent or node)]
    return node


def _break_cycles(nodes: list[_Node]) -> None:
    """Break the reference cycles between folders and their children.

    Otherwise the nodes, 300 bytes per file, would stay in memory until the cyclic garbage collector runs.
    """
    for node in nodes:
        if isinstance(node, _Folder):
            node.children.clear()


def _set_size(node: _Node) -> None:
    """Set the size of a folder or symlink from its content, and whether it fits inline after its inode."""
    if node.entry.kind is EntryKind.FILE:
        return
    if not isinstance(node, _Folder):
        node.size = len(_encode_target(node.entry))
    else:
        # EROFS looks names up by binary search, '.' and '..' included. Names can sort before '.', so the
        # manifest's order is not enough.
        node.children.sort(key=lambda pair: pair[0])
        names = [name for name, _ in node.children]
        node.block_ends = erofs.split_into_blocks(names)
        node.size = erofs.get_directory_size(names, node.block_ends)
    node.inline = INODE_SIZE + node.size <= BLOCK


def _encode_target(entry: Entry) -> bytes:
    return entry.target.encode(errors="surrogateescape")


def _assign_inode_offsets(nodes: list[_Node]) -> int:
    """Assign every node the byte offset of its inode; return the end.

    An inode with its inline data never crosses a block, as the kernel requires.
    """
    offset = erofs.FIRST_INODE
    for node in nodes:
        need = INODE_SIZE + (node.size if node.inline else 0)
        if offset % BLOCK + need > BLOCK:
            offset = erofs.align(offset)
        node.inode_offset = offset
        offset += -(-need // INODE_SIZE) * INODE_SIZE
    return offset


def _assign_metadata_blocks(nodes: list[_Node], block: int) -> int:
    """Assign blocks, starting at `block`, to folders and symlinks that are too long to be inline."""
    for node in nodes:
        if node.entry.kind is not EntryKind.FILE and not node.inline:
            node.block = block
            block += erofs.count_blocks(node.size)
    return block


def _assign_file_blocks(nodes: list[_Node], block: int) -> tuple[list[Extent], int]:
    """Assign blocks to all non-empty files; return their extents and the block after the last."""
    extents = []
    for node in nodes:
        if node.entry.kind is EntryKind.FILE and node.size:
            node.block = block
            extents.append(Extent(node.entry, block * BLOCK))
            block += erofs.count_blocks(node.size)
    return extents, block


def _write_node(metadata: bytearray, node: _Node, number: int) -> None:
    entry = node.entry
    data = erofs.INLINE if node.inline else erofs.PLAIN
    mode = _INODE_TYPES[entry.kind][1] | entry.mode
    erofs.write_inode(
        metadata, node.inode_offset, number=number, data=data, mode=mode, size=node.size, block=node.block,
        uid=entry.uid, gid=entry.gid, mtime_ns=entry.mtime_ns, nlink=node.nlink,
    )  # fmt: skip
    if entry.kind is EntryKind.FILE:
        return
    offset = node.inode_offset + INODE_SIZE if node.inline else node.block * BLOCK
    # A symlink's target is its data, as that of a folder is the list of its entries.
    content = _build_directory(node) if isinstance(node, _Folder) else _encode_target(entry)
    metadata[offset : offset + len(content)] = content


def _build_directory(node: _Folder) -> bytes:
    names = [(name, child.inode_offset, _INODE_TYPES[child.entry.kind][0]) for name, child in node.children]
    starts = [0, *node.block_ends[:-1]]
    parts = [
        erofs.build_directory_block(names[start:end])
        for start, end in zip(starts, node.block_ends, strict=True)
    ]
    return b"".join([*(part.ljust(BLOCK, b"\0") for part in parts[:-1]), parts[-1]])
