"""Keeps the machine from reclaiming page cache by itself while a test counts what is read twice.

Some hosts run DAMON with a scheme that pages out idle, unmapped page cache. It takes pages from under readers
that lag behind: sixteen readers then read up to 1.14 of an image, and exactly 1.000 without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATES = "/sys/kernel/mm/damon/admin/kdamonds"


@contextmanager
def no_proactive_reclaim() -> Iterator[None]:
    """Every kdamond that is on is off for the block; says so, since it is a setting of the machine."""
    running = [state for state in Path(_STATES).glob("*/state") if state.read_text().strip() == "on"]
    for state in running:
        state.write_text("off")
    if running:
        print(f"\npaused for this test: DAMON's reclaim of page cache ({len(running)} kdamond)")
    try:
        yield
    finally:
        for state in running:
            state.write_text("on")
