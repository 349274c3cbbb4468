"""A worker: resolves and fills in its own process.

That keeps the hubs' clients, their memory and their faults out of the plugins.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from csi.errors import DataCacheError, as_disk_full_error, to_wire
from csi.images.fill.fill import fill, seal
from csi.images.fill.paced_reader import limit_read_rate
from csi.images.fill.verify_against_origin import verify_against_origin
from csi.images.layout.layout import build_layout
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest
from csi.manifest.reader import OpenReader
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import CompositeSpec
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.program import logs
from csi.sources.catalog import open_source
from csi.sources.source import DEFAULT_CONNECTIONS, Source
from csi.worker.protocol import Resolution, WorkerRequest
from csi.worker_process.image_store_operations import build_store_operations, fill_from_store_or_origin

log = logging.getLogger("datacache.worker")
# Fills must not compete with pods for CPU.
_NICENESS = 5
_GC_THRESHOLD = 200_000


class Worker:
    """Executes requests one after another and writes events to `output`.

    `rate` is the maximum of file bytes per second (None: no limit); `startup_error` is the answer to every
    request, if set.
    """

    def __init__(
        self, output: IO[bytes], rate: int | None = None, startup_error: DataCacheError | None = None
    ) -> None:
        self._output, self._rate, self._startup_error = output, rate, startup_error
        self._operations = {
            "pin": self._pin,
            "resolve": self._resolve,
            "fill": self._fill,
            "verify": self._verify_against_origin,
        }
        self._operations |= build_store_operations(self._report)

    def serve(self, requests: queue.SimpleQueue[bytes]) -> None:
        """Execute requests for ever; the process ends with its input."""
        while True:
            self._handle(WorkerRequest.decode(requests.get()))

    def _handle(self, request: WorkerRequest) -> None:
        try:
            if self._startup_error:
                raise self._startup_error
            started_at = time.monotonic()
            result = self._operations[request.operation](request)
            log.debug(
                "request finished",
                extra={
                    "fields": {
                        "operation": request.operation,
                        "seconds": round(time.monotonic() - started_at, 3),
                    }
                },
            )
            self._send_event("result", result)
        except BaseException as exception:  # every outcome must reach the waiting caller
            error = as_disk_full_error(exception)
            if not isinstance(error, DataCacheError):
                # File and line only: the text of an unexpected exception may contain a URL or a secret.
                frames = " < ".join(
                    f"{f.filename}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__))
                )
                log.error(
                    "unexpected %s",
                    type(error).__name__,
                    extra={"fields": {"operation": request.operation, "at": frames}},
                )
            self._send_event("error", to_wire(error))

    def _send_event(self, name: str, body: dict[str, Any]) -> None:
        self._output.write(json.dumps({"event": name, **body}).encode() + b"\n")
        self._output.flush()

    def _pin(self, request: WorkerRequest) -> dict[str, Any]:
        with closing(
            open_source(
                parse_volume_parameters(request.spec).spec, request.secrets, request.allowed_destinations
            )
        ) as source:
            return {"spec": source.pin().to_context()}

    def _resolve(self, request: WorkerRequest) -> dict[str, Any]:
        spec = parse_volume_parameters(request.spec).spec
        # A source may have to read whole files to learn their size and sha256: no faster than a fill may.
        with closing(
            open_source(
                replace(spec, bandwidth_limit=self._get_rate_limit(spec)),
                request.secrets,
                request.allowed_destinations,
            )
        ) as source:
            manifest = source.resolve(replace(source.pin(), bandwidth_limit=spec.bandwidth_limit))
            source.check_read_access(manifest)
        if request.manifest:
            with Path(request.manifest).open("xb") as stream:
                manifest.write(stream)
        return _build_resolution(manifest).encode()

    def _fill(self, request: WorkerRequest) -> dict[str, Any]:
        if not Path(request.image).exists():
            manifest = _read_manifest(request)
            fill_from_store_or_origin(
                request, manifest, self._report, lambda: self._fill_from_origin(request, manifest)
            )
            seal(Path(request.partial), Path(request.image), Path(request.journal))
        return {}

    def _fill_from_origin(self, request: WorkerRequest, manifest: Manifest) -> None:
        spec = parse_volume_parameters(manifest.access).spec
        with closing(self._open_for_readers(request, spec)) as source:
            fill(
                build_layout(manifest),
                Path(request.partial),
                Path(request.journal),
                self._limit_read_rate(source, spec, manifest),
                max_connections=request.connections,
                reuse_candidates=[ImagePaths(Path(folder)) for folder in request.reuse_candidates],
                on_progress=self._report,
            )

    def _open_for_readers(self, request: WorkerRequest, spec: CacheSpec) -> Source:
        connections = max(request.connections, DEFAULT_CONNECTIONS)
        return open_source(spec, request.secrets, request.allowed_destinations, connections)

    def _get_rate_limit(self, spec: CacheSpec) -> int | None:
        return min((limit for limit in (spec.bandwidth_limit, self._rate) if limit), default=None)

    def _limit_read_rate(self, source: Source, spec: CacheSpec, manifest: Manifest) -> OpenReader:
        folders = dict(spec.source.limits) if isinstance(spec.source, CompositeSpec) else {}
        return limit_read_rate(lambda: source.open_reader(manifest), self._get_rate_limit(spec), folders)

    def _verify_against_origin(self, request: WorkerRequest) -> dict[str, Any]:
        manifest = _read_manifest(request)
        spec = parse_volume_parameters(manifest.access).spec
        with closing(self._open_for_readers(request, spec)) as source:
            seed, connections = bytes.fromhex(request.seed), request.connections
            verify_against_origin(
                build_layout(manifest),
                Path(request.image),
                self._limit_read_rate(source, spec, manifest),
                seed,
                max_connections=connections,
            )
        return {}

    def _report(self, progress: FillProgress) -> None:
        self._send_event("progress", progress.to_json())


def _read_manifest(request: WorkerRequest) -> Manifest:
    """Read the manifest of a request, with the spec of the request, if it has one, in place of its own."""
    with Path(request.manifest).open("rb") as stream:
        manifest = Manifest.read(stream)
    return (
        replace(manifest, access=request.spec)
        if request.spec and request.spec != manifest.access
        else manifest
    )


def _build_resolution(manifest: Manifest) -> Resolution:
    files = list(manifest.files)
    return Resolution(
        parse_volume_parameters(manifest.access).spec,
        manifest.digest,
        manifest.content_bytes,
        build_layout(manifest).size,
        len(files),
        sum(not file.is_verifiable for file in files),
    )


def reduce_gc_frequency() -> None:
    """Run the garbage collector after 200,000 new objects instead of 700.

    Manifests have no reference cycles, and traversing them took most of the time of a layout.
    """
    gc.set_threshold(_GC_THRESHOLD)


def _enter_network_namespace(netns: str, rate: int) -> DataCacheError | None:
    """Enter a network namespace and limit its rate.

    Return the error, with which every request is answered.
    """
    from csi.linux import network_namespace  # imports pyroute2: 14 MB that only egress profiles need

    try:
        network_namespace.enter_namespace(netns)
        if rate:
            network_namespace.limit_ingress_rate(rate)
    except DataCacheError as error:
        return error
    return None


def main() -> None:
    """Serve requests until standard input ends, then exit at once: the journal makes any moment safe.

    Arguments: the log's format and level, the path of a network namespace ("" for none) and bits per second
    (0 for no limit).
    """
    log_format, log_level, netns, rate = *sys.argv[1:4], int(sys.argv[4])
    os.nice(_NICENESS)
    reduce_gc_frequency()
    logs.configure("json" if log_format == "json" else "text", log_level)
    startup_error = _enter_network_namespace(netns, rate) if netns else None
    # Libraries that print must not reach the pipe that carries events.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(
        target=Worker(output, None if netns or not rate else rate // 8, startup_error).serve,
        args=(requests,),
        daemon=True,
    ).start()
    # The main thread only reads, so that the end of the plugin is noticed in the middle of a request too.
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
