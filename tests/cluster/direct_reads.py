"""Run in a container, as `python -c`: random reads of FILE for SECONDS that no page cache answers, THREADS at
a time.

Needs nothing but Python. It writes the moment at which each read was asked for, in seconds since the first
one, as a list in JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import threading
import time

_SIZE = 4096


def _read(file: int, pages: int, began: float, seconds: float, moments: list[float]) -> None:
    # O_DIRECT wants memory that is aligned as the device is: a page is.
    page = mmap.mmap(-1, _SIZE)
    draw = random.Random()
    while (now := time.monotonic() - began) < seconds:
        moments.append(now)
        if os.preadv(file, [page], draw.randrange(pages) * _SIZE) != _SIZE:
            raise SystemExit("a read was cut short")


def _main(path: str, seconds: float, threads: int) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pages, began = os.fstat(file).st_size // _SIZE, time.monotonic()
    moments: list[list[float]] = [[] for _ in range(threads)]
    readers = [threading.Thread(target=_read, args=(file, pages, began, seconds, own)) for own in moments]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    json.dump(sorted(round(moment, 4) for own in moments for moment in own), sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
