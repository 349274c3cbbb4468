"""Files that are read whole, no faster than they may be, and not for ever: to know their size and sha256, or because they are documents."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import urllib3

from csi.errors import OriginUnavailable, OutOfRange
from csi.parameters.volume_parameters import MAX_VOLUME_BYTES
from csi.sources.http.connections import format_site, unreachable_error
from csi.sources.http.file_urls import Response
from csi.sources.http.throughput import ThroughputBaseline, ThroughputMeter

_READ_BYTES = 1 << 16


def read_size_and_sha256(
    response: Response, url: str, wait: Callable[[int], None], baseline: ThroughputBaseline
) -> tuple[int, str]:
    """Bytes and sha256 of what comes. `wait` returns when so many bytes more may be read; `baseline` is what other connections give.

    Raises OriginUnavailable where that cannot be taken as the file or trickles, OutOfRange where it ends not before the largest volume is full.
    """
    size, sha = 0, hashlib.sha256()
    for piece in iter_body(
        response, url, wait, baseline, " (while reading a file whole, to know what it is)"
    ):
        size += len(piece)
        sha.update(piece)
        if size > MAX_VOLUME_BYTES:
            raise OutOfRange(
                f"{format_site(url)}: a file has more than {MAX_VOLUME_BYTES} bytes, and a volume can have no more; check url"
            )
    return size, sha.hexdigest()


def iter_body(
    response: Response, url: str, wait: Callable[[int], None], baseline: ThroughputBaseline, context: str
) -> Iterator[bytes | memoryview]:
    """The body as it comes, in pieces of at most 64 KiB; otherwise as `read_size_and_sha256`. `context` ends messages."""
    host, meter = format_site(url), ThroughputMeter(baseline)
    if response.status != 200 or response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OriginUnavailable(
            f"{host}: it tells no length of the file, or sends it compressed, which was not asked for{context}"
        )
    while piece := _read_piece(response, host, context, meter):
        yield piece
        wait(len(piece))
    meter.end_window()


def _read_piece(response: Response, host: str, context: str, meter: ThroughputMeter) -> bytes | memoryview:
    started_at = time.monotonic()
    try:
        piece = response.read1(_READ_BYTES)
    except (OSError, urllib3.exceptions.HTTPError) as error:
        raise unreachable_error(error, host, context) from error
    if meter.is_too_slow(len(piece), time.monotonic() - started_at):
        raise OriginUnavailable(f"{host}: the connection gives far less than others do{context}")
    return piece
