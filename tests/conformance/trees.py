"""The tree that the suite puts at an origin, and how to see what a manifest and its readers make of it."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

from csi.manifest.manifest import Entry, EntryKind, Manifest
from csi.sources.source import Source
from tests.conformance.kit import Tree

BIG = "weights/model.safetensors"
SMALL = "meta/config.json"
EMPTY = "meta/empty.txt"
ONE = "meta/one"


@functools.lru_cache(maxsize=2)
def _random(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def tree(seed: int = 0, big: int = 5_000_003, top: bool = True) -> Tree:
    """Files of several sizes (none, one byte, just around a page, `big`), nested folders, names in several
    scripts, over 30 entries.

    With `top`, files in no folder too.
    """
    files: dict[str, bytes | str | None] = {
        SMALL: b'{"seed": %d}\n' % seed,
        EMPTY: b"",
        BIG: _random(seed, big),
        ONE: b"1",
        "names/a b/%41#?&+.txt": b"a name to be quoted",
        "names/\u00fcber/\u65e5\u672c\u8a9e/\U0001f680.txt": b"names in any script",
        "deep/er/and/deep/er/file": b"x" * 4097,
        "deep/page": b"y" * 4096,
    }
    at_the_top: Tree = {"config.json": b"{}", "a b%41.txt": b"at the top", "none.txt": b""} if top else {}
    return files | at_the_top | {f"many/file-{n:03}.txt": b"%d" % n for n in range(30)}


def contents(files: Tree) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if isinstance(data, bytes)}


def entry(manifest: Manifest, path: str) -> Entry:
    return next(e for e in manifest.entries if e.path == path)


def read(source: Source, manifest: Manifest, path: str, offset: int = 0, length: int | None = None) -> bytes:
    """One range of a file over a fresh reader; the rest of the file where `length` is None."""
    wanted = entry(manifest, path)
    buffer = bytearray(wanted.size - offset if length is None else length)
    with source.open_reader(manifest) as reader:
        reader.read_into(wanted, offset, memoryview(buffer))
    return bytes(buffer)


def read_all(source: Source, manifest: Manifest) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with source.open_reader(manifest) as reader:
        for e in manifest.entries:
            if e.kind is EntryKind.FILE:
                buffer = bytearray(e.size)
                reader.read_into(e, 0, memoryview(buffer))
                found[e.path] = bytes(buffer)
    return found


def spoil(file: Path) -> None:
    """Other bytes of the same length and the same times in a file."""
    times = file.stat()
    with file.open("r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(bytes([first[0] ^ 0xFF]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
