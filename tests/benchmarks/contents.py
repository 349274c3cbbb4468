"""Repositories to measure with: random bytes, one large file or a mix of sizes."""

from __future__ import annotations

import os
from pathlib import Path

MIB = 2**20
_BLOCK = 16 * MIB


def sizes_of(shape: str, total: int) -> dict[str, int]:
    """Paths and bytes of a repository of about `total` bytes: "one" file, or a "mix" of three shards, 24
    middling and 200 small files.

    Of "small", 20,000 of 16 KiB, by the hundred in a folder, whatever `total`.
    """
    if shape == "small":
        return {f"{n // 100:03}/{n:05}.bin": 16 << 10 for n in range(20_000)}
    if shape == "one":
        return {"model.safetensors": total}
    small = {f"notes/{n % 10}/{n:03}.json": 4096 + 601 * n for n in range(200)}
    middling = {f"adapters/{n:02}.safetensors": 16 * MIB + n for n in range(24)}
    rest = total - sum(small.values()) - sum(middling.values())
    return {**small, **middling, **{f"model-{n}-of-3.safetensors": rest // 3 for n in (1, 2, 3)}}


def make(folder: Path, shape: str, total: int) -> dict[str, Path]:
    """Write the files of `sizes_of` below `folder`."""
    made = {}
    for name, size in sizes_of(shape, total).items():
        made[name] = folder / name
        made[name].parent.mkdir(parents=True, exist_ok=True)
        _write(made[name], size)
    return made


def _write(path: Path, size: int) -> None:
    """One random block over and over, each time with another number in it: nothing on the way compresses
    or compares."""
    block = bytearray(os.urandom(min(size, _BLOCK)))
    with path.open("wb", buffering=0) as stream:
        for at in range(0, size, _BLOCK):
            block[:8] = at.to_bytes(8)
            stream.write(memoryview(block)[: size - at])
