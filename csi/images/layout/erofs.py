"""The bytes of an uncompressed EROFS: super block, extended inodes, directory blocks.

Format: the Linux kernel's fs/erofs/erofs_fs.h (on-disk structures; little endian). Only what
`csi.images.layout.layout` needs: 4 KiB blocks, extended inodes, data either in blocks of its own (plain) or
directly after its inode (inline).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

BLOCK = 4096
BLOCK_BITS = 12
# The first 1024 bytes are reserved for boot code. The super block is 128 bytes long; inodes may follow
# directly.
SUPER_OFFSET = 1024
FIRST_INODE = SUPER_OFFSET + 128
INODE_SIZE = 64
MAX_BLOCKS = 2**32 - 1
NO_BLOCK = 0xFFFFFFFF
DIRENT_SIZE = 12

# EROFS_INODE_FLAT_PLAIN and EROFS_INODE_FLAT_INLINE.
PLAIN, INLINE = 0, 2
# File types of directory entries (include/linux/fs_types.h: FT_REG_FILE, FT_DIR, FT_SYMLINK).
TYPE_FILE, TYPE_DIRECTORY, TYPE_SYMLINK = 1, 2, 7
IFREG, IFDIR, IFLNK = 0o100000, 0o040000, 0o120000
_IFMT = 0o170000

_MAGIC = 0xE0F5E1E2
# EROFS_FEATURE_COMPAT_SB_CHKSUM and EROFS_FEATURE_COMPAT_MTIME.
_COMPAT_CHECKSUM, _COMPAT_MTIME = 0x1, 0x2
# An inode's number ("nid") is its byte offset in units of 32 bytes.
_NID_SHIFT = 5
# The version bit of i_format: extended inodes have 64-bit sizes, 32-bit owner ids and a time.
_EXTENDED = 1
_NANO = 10**9
_super = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_inode = struct.Struct("<HHHHQIIIIqII16x")
_dirent = struct.Struct("<QHBB")

# The name of a directory entry, the byte offset of its inode, and the TYPE_ of that inode.
DirectoryEntry = tuple[bytes, int, int]


def _build_crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            # The Castagnoli polynomial 0x1EDC6F41, bit-reversed.
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _build_crc_table()


def crc32c(data: bytes, crc: int = 0xFFFFFFFF) -> int:
    """Compute the CRC-32C (Castagnoli, reflected) of `data`, continued from `crc`.

    Without the final inversion, as EROFS stores it.
    """
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc


def count_blocks(size: int) -> int:
    """Return how many blocks `size` bytes take."""
    return -(-size // BLOCK)


def align(size: int) -> int:
    """Round `size` up to whole blocks, in bytes."""
    return count_blocks(size) * BLOCK


def build_super_block(inodes: int, image_blocks: int, uuid: bytes, root_offset: int) -> bytes:
    """Build the 128 bytes at SUPER_OFFSET, with a zero checksum that `write_super_block_checksum` sets.

    `uuid` is 16 bytes, `root_offset` the byte offset of the root's inode.
    """
    return _super.pack(
        _MAGIC, 0, _COMPAT_CHECKSUM | _COMPAT_MTIME, BLOCK_BITS, 0, root_offset >> _NID_SHIFT, inodes,
        0, 0, image_blocks, 0, 0, uuid, b"", 0, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def write_super_block_checksum(metadata: bytearray) -> None:
    """Store the checksum over the rest of the first block, from SUPER_OFFSET, in the super block."""
    struct.pack_into("<I", metadata, SUPER_OFFSET + 4, crc32c(bytes(metadata[SUPER_OFFSET:BLOCK])))


def read_root_offset(first_block: bytes) -> int | None:
    """Return the byte offset of the root's inode from the first BLOCK of an image.

    None without a super block.
    """
    if len(first_block) < BLOCK:
        return None
    magic, _, _, _, _, root, *_ = _super.unpack_from(first_block, SUPER_OFFSET)
    return root << _NID_SHIFT if magic == _MAGIC else None


def is_directory_inode(inode: bytes) -> bool:
    """Return whether these INODE_SIZE bytes are the inode of a folder."""
    return len(inode) == INODE_SIZE and _inode.unpack(inode)[2] & _IFMT == IFDIR


def write_inode(  # noqa: PLR0913 - the fields of the on-disk inode
    buffer: bytearray,
    offset: int,
    *,
    number: int,
    data: int,
    mode: int,
    size: int,
    block: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    nlink: int,
) -> None:
    """Write the 64-byte inode at byte `offset`.

    `data` is PLAIN or INLINE, `mode` includes the file type bits, `block` is the first data block.
    """
    seconds, nanoseconds = divmod(mtime_ns, _NANO)
    _inode.pack_into(
        buffer,
        offset,
        data << 1 | _EXTENDED,
        0,
        mode,
        0,
        size,
        block,
        number,
        uid,
        gid,
        seconds,
        nanoseconds,
        nlink,
    )


def split_into_blocks(names: Sequence[bytes]) -> list[int]:
    """Return where each directory block ends, as indices into the sorted `names`.

    Blocks hold whole entries.
    """
    ends, used_bytes = [], 0
    for index, name in enumerate(names):
        need = DIRENT_SIZE + len(name)
        if used_bytes + need > BLOCK:
            ends.append(index)
            used_bytes = 0
        used_bytes += need
    return [*ends, len(names)]


def get_directory_size(names: Sequence[bytes], ends: Sequence[int]) -> int:
    """Return the bytes of a directory's data: all blocks but the last are full."""
    last = names[ends[-2] if len(ends) > 1 else 0 :]
    return (len(ends) - 1) * BLOCK + DIRENT_SIZE * len(last) + sum(map(len, last))


def build_directory_block(names: Sequence[DirectoryEntry]) -> bytes:
    """Build one self-contained directory block, not padded: the entries, then their names."""
    offset = DIRENT_SIZE * len(names)
    entries = []
    for name, inode, kind in names:
        entries.append(_dirent.pack(inode >> _NID_SHIFT, offset, kind, 0))
        offset += len(name)
    return b"".join(entries) + b"".join(name for name, _, _ in names)
