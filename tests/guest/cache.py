"""Folders in which guests are built and run: what a killed one left there is removed, what another one
works in is left alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone(cache: Path) -> Iterator[int]:
    """Nobody else builds in `cache` for the block, which gets the lock's descriptor: a child that has it
    too keeps the lock."""
    with _locked(cache, fcntl.LOCK_EX) as lock:
        for half in cache.glob("*.partial"):
            shutil.rmtree(half)
        yield lock


@contextmanager
def run_folder(cache: Path) -> Iterator[Path]:
    """A folder in `cache` for one run, removed behind it."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=cache) as name, _locked(Path(name), fcntl.LOCK_SH):
        for other in cache.glob("run-*"):
            with suppress(BlockingIOError, FileNotFoundError), _locked(other, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(other)
        yield Path(name)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)
