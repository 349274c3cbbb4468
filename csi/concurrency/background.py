"""A thread that runs for the length of a block of code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def background_thread(
    work: Callable[[threading.Event], object], name: str, wake: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Run `work(stop)` in a thread called `name` while the block runs.

    On leaving the block, set `stop`, call `wake()` and join the thread.
    """
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        wake()
        thread.join()
