"""The life of a program: flags, memory, logs, then its work, until it is told to leave."""

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


def keep_memory_small() -> None:
    """Let glibc keep two malloc arenas in place of eight a core: hundreds of threads would hold on to free memory otherwise."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 * 1024)


def give_memory_back() -> None:
    """Let the node have what a burst of work has needed and nobody holds any more."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def run(flags: argparse.ArgumentParser, serve_with: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None) -> None:
    """A program's whole life: flags, memory, logs, then `serve_with`. Exit status 1, with the reason on standard error, where it cannot start."""
    options = flags.parse_args(arguments)
    keep_memory_small()
    logs.set_up(options.log_format, options.log_level)
    try:
        serve_with(options)
    except errors.DataCacheError as error:
        sys.exit(f"{flags.prog}: {error}")
    except OSError as error:
        sys.exit(f"{flags.prog}: {error.filename}: {error.strerror}; check the folders that the flags name")


def until_told_to_leave() -> None:
    """Return at SIGTERM or SIGINT; for the main thread."""
    told, teller = socket.socketpair()
    with told, teller:
        # Whichever thread the signal meets: an event would be set by the main thread's own handler, which waits for it.
        teller.setblocking(False)
        signal.set_wakeup_fd(teller.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        told.recv(1)
        signal.set_wakeup_fd(-1)
