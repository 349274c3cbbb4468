"""Complete reads of files, rate limited and bounded.

They serve to learn a file's size and sha256, or to read a document.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import urllib3

from csi.errors import OriginUnavailable, OutOfRange
from csi.parameters.volume_parameters import MAX_VOLUME_BYTES
from csi.sources.http.connections import unreachable_error
from csi.sources.http.file_urls import Response
from csi.sources.http.sites import format_site
from csi.sources.http.throughput import ThroughputBaseline, ThroughputMeter

_READ_BYTES = 1 << 16


def read_size_and_sha256(
    response: Response, url: str, wait: Callable[[int], None], baseline: ThroughputBaseline
) -> tuple[int, str]:
    """Read a body to its end and return its size and sha256.

    `wait` is called with the bytes of each piece and returns when reading may continue; `baseline` is the
    usual throughput. Raises OriginUnavailable if the response is not the file or too slow, OutOfRange if it
    exceeds the largest volume.
    """
    size, sha = 0, hashlib.sha256()
    for piece in iter_body(
        response, url, wait, baseline, " (while reading the whole file to learn its size and sha256)"
    ):
        size += len(piece)
        sha.update(piece)
        if size > MAX_VOLUME_BYTES:
            raise OutOfRange(
                f"{format_site(url)}: a file has more than {MAX_VOLUME_BYTES} bytes, "
                "the maximum of a volume; check url"
            )
    return size, sha.hexdigest()


def iter_body(
    response: Response, url: str, wait: Callable[[int], None], baseline: ThroughputBaseline, context: str
) -> Iterator[bytes | memoryview]:
    """Yield the body in pieces of at most 64 KiB, under the rules of `read_size_and_sha256`.

    `context` ends messages.
    """
    host, meter = format_site(url), ThroughputMeter(baseline)
    if response.status != 200 or response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise OriginUnavailable(
            f"{host}: it does not send the file, or sends it compressed, which was not requested{context}"
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
        raise OriginUnavailable(f"{host}: the connection is far slower than others{context}")
    return piece
