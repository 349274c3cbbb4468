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


def limit_malloc_arenas() -> None:
    """Let glibc keep two malloc arenas in place of eight a core: hundreds of threads would hold on to free memory otherwise."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 * 1024)


def release_free_memory() -> None:
    """Let the node have what a burst of work has needed and nobody holds any more."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def run_program(
    parser: argparse.ArgumentParser,
    serve: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
) -> None:
    """A program's whole life: flags, memory, logs, then `serve`. Exit status 1, with the reason on standard error, where it cannot start."""
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
    """Return at SIGTERM or SIGINT; for the main thread."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        # Whichever thread the signal meets: an event would be set by the main thread's own handler, which waits for it.
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        receiver.recv(1)
        signal.set_wakeup_fd(-1)
