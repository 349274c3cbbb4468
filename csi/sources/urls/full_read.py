"""Files that are read whole, no faster than they may be, and not for ever: to know their size and sha256, or because they are documents."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import urllib3

from csi.errors import OriginUnavailable, OutOfRange
from csi.parameters.volume_parameters import LARGEST_VOLUME
from csi.sources.http.connections import shown_site, unreachable
from csi.sources.http.file_urls import Answer
from csi.sources.http.throughput import Meter, Tempo

_PIECE = 1 << 16


def read_whole(answer: Answer, url: str, wait: Callable[[int], None], usual: Tempo) -> tuple[int, str]:
    """Bytes and sha256 of what comes. `wait` returns when so many bytes more may be read; `usual` is what other connections give.

    Raises OriginUnavailable where that cannot be taken as the file or trickles, OutOfRange where it ends not before the largest volume is full.
    """
    size, sha = 0, hashlib.sha256()
    for piece in pieces(answer, url, wait, usual, " (while reading a file whole, to know what it is)"):
        size += len(piece)
        sha.update(piece)
        if size > LARGEST_VOLUME:
            raise OutOfRange(f"{shown_site(url)}: a file has more than {LARGEST_VOLUME} bytes, and a volume can have no more; check url")
    return size, sha.hexdigest()


def pieces(answer: Answer, url: str, wait: Callable[[int], None], usual: Tempo, while_doing: str) -> Iterator[bytes | memoryview]:
    """The body as it comes, in pieces of at most 64 KiB; otherwise as `read_whole`. `while_doing` ends messages."""
    where, meter = shown_site(url), Meter(usual)
    if answer.status != 200 or answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OriginUnavailable(f"{where}: it tells no length of the file, or sends it compressed, which was not asked for{while_doing}")
    while piece := _next(answer, where, while_doing, meter):
        yield piece
        wait(len(piece))
    meter.end()


def _next(answer: Answer, where: str, while_doing: str, meter: Meter) -> bytes | memoryview:
    began = time.monotonic()
    try:
        piece = answer.read1(_PIECE)
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise unreachable(error, where, while_doing) from error
    if meter.trickles(len(piece), time.monotonic() - began):
        raise OriginUnavailable(f"{where}: the connection gives far less than others do{while_doing}")
    return piece
