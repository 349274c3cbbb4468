"""A file system of its own for a test: nobody else reads from its device, and it is as small as the test
wants."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Options for tests: ext4 without blocks for root alone; XFS wants 300 MiB, btrfs is fine with 110.
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-m", "0"], "xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}


@contextmanager
def disk(folder: Path, size: int, kind: str = "ext4") -> Iterator[Path]:
    """A file system of `size` bytes over a file in `folder`, mounted below it for the block.

    `kind` is ext4, xfs or btrfs.
    """
    image, target = folder / "disk", folder / "mounted"
    target.mkdir()
    with image.open("wb") as stream:
        stream.truncate(size)
    subprocess.run([*_MAKE[kind], str(image)], check=True)
    device = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", str(image)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        subprocess.run(["mount", device, str(target)], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", str(target)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()
