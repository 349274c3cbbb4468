"""Lifecycle of a program: flags, memory settings and logs, then its work, until a signal ends it."""

from __future__ import annotations

import argparse
import ctypes
import gc
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from csi import errors
from csi.program import logs

# From <malloc.h>.
_M_ARENA_MAX, _M_TRIM_THRESHOLD = -8, -1


def limit_malloc_arenas() -> None:
    """Limit glibc to two malloc arenas instead of eight per core.

    Otherwise hundreds of threads would keep free memory in theirs.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # Setting a fixed trim threshold also turns off glibc's dynamic one, which grows up to 64 MiB.
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 * 1024)


def release_free_memory() -> None:
    """Return memory that a burst of work no longer needs to the node."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def run_program(
    parser: argparse.ArgumentParser,
    serve: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
) -> None:
    """Run a program: parse flags, limit memory, configure logs, call `serve`.

    If it cannot start, exit with status 1 and the reason on standard error.
    """
    options = parser.parse_args(arguments)
    limit_malloc_arenas()
    logs.configure(options.log_format, options.log_level)
    try:
        serve(options)
    except errors.DataCacheError as error:
        sys.exit(f"{parser.prog}: {error}")
    except OSError as error:
        sys.exit(f"{parser.prog}: {error.filename}: {error.strerror}; check the folders that the flags name")


def wait_for_signal() -> None:
    """Return at SIGTERM or SIGINT; for the main thread only."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        # The wakeup descriptor works whichever thread receives the signal. An Event set by a Python handler
        # would not:
        # handlers run in the main thread, which is blocked waiting for the event.
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        receiver.recv(1)
        signal.set_wakeup_fd(-1)
