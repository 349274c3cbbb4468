"""What the NAS tests share: one server for a module, folders on it, and reading a whole source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi.manifest.manifest import Entry, Manifest
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.nas import NasSpec
from csi.sources.nfs.source import NasSource


@contextmanager
def opened(spec: NasSpec, *, preserve_ownership: bool = False) -> Iterator[NasSource]:
    """The source of `spec`, closed afterwards."""
    source = NasSource(CacheSpec(spec, preserve_ownership))
    try:
        yield source
    finally:
        source.close()


def resolved(spec: NasSpec, *, preserve_ownership: bool = False) -> Manifest:
    """What the source holds, after it was proven readable."""
    with opened(spec, preserve_ownership=preserve_ownership) as source:
        manifest = source.resolve(source.pin())
        source.check_read_access(manifest)
        return manifest


def by_path(manifest: Manifest) -> dict[str, Entry]:
    """The entries by path."""
    return {entry.path: entry for entry in manifest.entries}


def contents(spec: NasSpec, chunk: int = 1 << 22) -> dict[str, bytes]:
    """Every file's bytes, read `chunk` bytes at a time."""
    with opened(spec) as source:
        manifest = source.resolve(source.pin())
        with source.open_reader(manifest) as reader:
            found = {}
            for entry in manifest.files:
                data = bytearray(entry.size)
                for offset in range(0, entry.size, chunk):
                    reader.read_into(entry, offset, memoryview(data)[offset : offset + chunk])
                found[entry.path] = bytes(data)
            return found


def write(path: Path, data: bytes) -> Path:
    """`path` with `data` in it, its folders made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
