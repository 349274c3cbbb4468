"""Rounds: everything that is compared is measured in turn, in one run, so that a slow minute hits all
alike."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.benchmarks.table import Series

_STARTED = time.monotonic()


def say(text: str) -> None:
    """One line of progress on standard error."""
    print(f"  [{time.monotonic() - _STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def interleaved(count: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, Series]:
    """Call every measure once a round, `count` rounds, each round beginning with another.

    Their figures by name.
    """
    names = list(measures)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(measures[name]())
            say(f"round {number + 1} of {count}: {name}: {found[name][-1]:.4g}")
    return {name: Series(tuple(values)) for name, values in found.items()}


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def drop_caches() -> None:
    """Write what is dirty and forget every page, name and inode."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def warm(files: Iterable[Path]) -> None:
    """Bring files into the page cache: an origin's disk must not be what is measured."""
    for path in files:
        with path.open("rb", buffering=0) as stream:
            while stream.read(8 << 20):
                pass


def command(argv: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a program to its end; raises RuntimeError with its last words when it fails."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed ({done.returncode}): {(done.stdout + done.stderr)[-2000:]}")
