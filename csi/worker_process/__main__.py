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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
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
from csi.worker.operations import FillImage, PinSource, ResolveSource, VerifyImage
from csi.worker.protocol import WorkerRequest, decode_request
from csi.worker.results import Resolution
from csi.worker_process.image_store_operations import execute_store_operation, fill_from_image_store_or_origin

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
        self._output, self._max_bytes_per_second, self._startup_error = output, rate, startup_error

    def serve(self, requests: queue.SimpleQueue[bytes]) -> None:
        """Execute requests for ever; the process ends with its input."""
        while True:
            self._handle(requests.get())

    def _handle(self, line: bytes) -> None:
        name = ""  # until the line is decoded
        try:
            if self._startup_error:
                raise self._startup_error
            started_at = time.monotonic()
            request = decode_request(line)
            name = request.operation.name
            result = self._execute(request)
            log.debug(
                "request finished",
                extra={"fields": {"operation": name, "seconds": round(time.monotonic() - started_at, 3)}},
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
                    extra={"fields": {"operation": name, "at": frames}},
                )
            self._send_event("error", to_wire(error))

    def _execute(self, request: WorkerRequest) -> dict[str, Any]:
        """Execute a request and return its encoded result."""
        operation, allowed = request.operation, request.allowed_destinations
        match operation:
            case PinSource():
                return operation.encode_result(self.pin(operation, allowed))
            case ResolveSource():
                return operation.encode_result(self.resolve(operation, allowed))
            case FillImage():
                self._fill(operation, allowed)
                return operation.encode_result()
            case VerifyImage():
                self._verify_against_origin(operation, allowed)
                return operation.encode_result()
            case _:
                return execute_store_operation(operation, self._report)

    def _send_event(self, name: str, body: dict[str, Any]) -> None:
        self._output.write(json.dumps({"event": name, **body}).encode() + b"\n")
        self._output.flush()

    def pin(self, operation: PinSource, allowed_destinations: Sequence[str]) -> CacheSpec:
        """Pin a spec at its origin; raises the errors of a Source."""
        with closing(open_source(operation.spec, operation.secrets.values, allowed_destinations)) as source:
            return source.pin()

    def resolve(self, operation: ResolveSource, allowed_destinations: Sequence[str]) -> Resolution:
        """Pin and list a spec and check read access; raises the errors of a Source."""
        spec = operation.spec
        # A source may have to read whole files to learn their size and sha256: no faster than a fill may. The
        # manifest gets the volume's own limit, not this worker's.
        limited_spec = replace(spec, bandwidth_limit=self._get_rate_limit(spec))
        with closing(open_source(limited_spec, operation.secrets.values, allowed_destinations)) as source:
            manifest = source.resolve(replace(source.pin(), bandwidth_limit=spec.bandwidth_limit))
            source.check_read_access(manifest)
        if operation.manifest:
            with operation.manifest.open("xb") as stream:
                manifest.write(stream)
        return _build_resolution(manifest)

    def _fill(self, operation: FillImage, allowed_destinations: Sequence[str]) -> None:
        paths = ImagePaths(operation.folder)
        if paths.image.exists():
            return
        manifest = _read_manifest(operation)
        fill_from_image_store_or_origin(
            operation,
            manifest,
            self._report,
            lambda: self._fill_from_origin(operation, manifest, allowed_destinations),
        )
        seal(paths.partial, paths.image, paths.journal)

    def _fill_from_origin(
        self, operation: FillImage, manifest: Manifest, allowed_destinations: Sequence[str]
    ) -> None:
        paths = ImagePaths(operation.folder)
        spec = parse_volume_parameters(manifest.access).spec
        with closing(_open_for_readers(operation, spec, allowed_destinations)) as source:
            fill(
                build_layout(manifest),
                paths.partial,
                paths.journal,
                self._open_paced_readers(source, spec, manifest),
                max_connections=operation.max_connections,
                reuse_candidates=[ImagePaths(folder) for folder in operation.reuse_candidates],
                on_progress=self._report,
            )

    def _get_rate_limit(self, spec: CacheSpec) -> int | None:
        return min(
            (limit for limit in (spec.bandwidth_limit, self._max_bytes_per_second) if limit), default=None
        )

    def _open_paced_readers(self, source: Source, spec: CacheSpec, manifest: Manifest) -> OpenReader:
        folders = dict(spec.source.limits) if isinstance(spec.source, CompositeSpec) else {}
        return limit_read_rate(lambda: source.open_reader(manifest), self._get_rate_limit(spec), folders)

    def _verify_against_origin(self, operation: VerifyImage, allowed_destinations: Sequence[str]) -> None:
        manifest = _read_manifest(operation)
        spec = parse_volume_parameters(manifest.access).spec
        with closing(_open_for_readers(operation, spec, allowed_destinations)) as source:
            verify_against_origin(
                build_layout(manifest),
                ImagePaths(operation.folder).image,
                self._open_paced_readers(source, spec, manifest),
                bytes.fromhex(operation.seed),
                max_connections=operation.max_connections,
            )

    def _report(self, progress: FillProgress) -> None:
        self._send_event("progress", progress.to_json())


def _read_manifest(operation: FillImage | VerifyImage) -> Manifest:
    """Read the manifest in the folder; its own source is replaced by the content's, if that has one."""
    with ImagePaths(operation.folder).manifest.open("rb") as stream:
        manifest = Manifest.read(stream)
    source = operation.content.source
    return replace(manifest, access=dict(source)) if source and source != manifest.access else manifest


def _open_for_readers(
    operation: FillImage | VerifyImage, spec: CacheSpec, allowed_destinations: Sequence[str]
) -> Source:
    connections = max(operation.max_connections, DEFAULT_CONNECTIONS)
    return open_source(spec, operation.content.secrets.values, allowed_destinations, connections)


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
    # In a namespace the kernel limits all its workers together; without one, this worker paces itself, in
    # bytes.
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
