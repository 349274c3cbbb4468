"""A worker: resolves and fills in a process of its own, so that hub clients, their memory and their faults stay out of the plugins."""

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

from csi.errors import DataCacheError, recognised, to_wire
from csi.images.fill.fill import fill, seal
from csi.images.fill.paced_reader import paced
from csi.images.fill.verify_against_origin import vouch
from csi.images.layout.layout import lay_out
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest
from csi.manifest.reader import OpenReader
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.dialects.composite import SeveralSpec
from csi.parameters.volume_parameters import parse
from csi.program import logs
from csi.sources.catalog import open_source
from csi.sources.source import Source
from csi.worker.protocol import Request, Resolution
from csi.worker_process.image_store_operations import fill_from_either, store_operations

log = logging.getLogger("datacache.worker")
_NICE = 5
_COLLECT_EVERY = 200_000


class Worker:
    """Answers requests one after another; events go to `output`. `rate` is the most bytes of files per second (None: no limit)."""

    def __init__(self, output: IO[bytes], rate: int | None = None, broken: DataCacheError | None = None) -> None:
        self._output, self._rate, self._broken = output, rate, broken
        self._operations = {"pin": self._pin, "resolve": self._resolve, "fill": self._fill, "vouch": self._vouch}
        self._operations |= store_operations(self._report)

    def serve(self, requests: queue.SimpleQueue[bytes]) -> None:
        """Answer requests for ever; the process ends when its input does."""
        while True:
            self._answer(Request.decode(requests.get()))

    def _answer(self, request: Request) -> None:
        try:
            if self._broken:
                raise self._broken
            began = time.monotonic()
            result = self._operations[request.operation](request)
            log.debug("done", extra={"fields": {"operation": request.operation, "s": round(time.monotonic() - began, 3)}})
            self._say("result", result)
        except BaseException as raised:  # whatever happens is the caller's to hear
            error = recognised(raised)
            if not isinstance(error, DataCacheError):
                places = " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__)))
                log.error("unexpected %s", type(error).__name__, extra={"fields": {"operation": request.operation, "at": places}})
            self._say("error", to_wire(error))

    def _say(self, event: str, body: dict[str, Any]) -> None:
        self._output.write(json.dumps({"event": event, **body}).encode() + b"\n")
        self._output.flush()

    def _pin(self, request: Request) -> dict[str, Any]:
        with closing(open_source(parse(request.spec).spec, request.secrets, request.allowed)) as source:
            return {"spec": source.pin().to_context()}

    def _resolve(self, request: Request) -> dict[str, Any]:
        spec = parse(request.spec).spec
        # A source may have to read files whole to know them: no faster than a fill may.
        with closing(open_source(replace(spec, bandwidth_limit=self._limit(spec)), request.secrets, request.allowed)) as source:
            manifest = source.resolve(replace(source.pin(), bandwidth_limit=spec.bandwidth_limit))
            source.prove(manifest)
        if request.manifest:
            with Path(request.manifest).open("xb") as stream:
                manifest.write(stream)
        return _resolution(manifest).encode()

    def _fill(self, request: Request) -> dict[str, Any]:
        if not Path(request.image).exists():
            manifest = _manifest(request)
            fill_from_either(request, manifest, self._report, lambda: self._fill_from_origin(request, manifest))
            seal(Path(request.partial), Path(request.image), Path(request.journal))
        return {}

    def _fill_from_origin(self, request: Request, manifest: Manifest) -> None:
        spec = parse(manifest.access).spec
        with closing(open_source(spec, request.secrets, request.allowed)) as source:
            fill(
                lay_out(manifest),
                Path(request.partial),
                Path(request.journal),
                self._paced(source, spec, manifest),
                connections=request.connections,
                donors=[ImagePaths(Path(folder)) for folder in request.donors],
                progress=self._report,
            )

    def _limit(self, spec: CacheSpec) -> int | None:
        return min((limit for limit in (spec.bandwidth_limit, self._rate) if limit), default=None)

    def _paced(self, source: Source, spec: CacheSpec, manifest: Manifest) -> OpenReader:
        folders = dict(spec.source.limits) if isinstance(spec.source, SeveralSpec) else {}
        return paced(lambda: source.reader(manifest), self._limit(spec), folders)

    def _vouch(self, request: Request) -> dict[str, Any]:
        manifest = _manifest(request)
        spec = parse(manifest.access).spec
        with closing(open_source(spec, request.secrets, request.allowed)) as source:
            seed, connections = bytes.fromhex(request.seed), request.connections
            vouch(lay_out(manifest), Path(request.image), self._paced(source, spec, manifest), seed, connections=connections)
        return {}

    def _report(self, progress: FillProgress) -> None:
        self._say("progress", progress.to_json())


def _manifest(request: Request) -> Manifest:
    """The manifest of a request, read as its spec says."""
    with Path(request.manifest).open("rb") as stream:
        manifest = Manifest.read(stream)
    return replace(manifest, access=request.spec) if request.spec and request.spec != manifest.access else manifest


def _resolution(manifest: Manifest) -> Resolution:
    files = list(manifest.files)
    return Resolution(
        parse(manifest.access).spec,
        manifest.digest,
        manifest.content_bytes,
        lay_out(manifest).size,
        len(files),
        sum(not file.verifiable for file in files),
    )


def collect_seldom() -> None:
    """Look for garbage after 200,000 new objects, not 700: manifests hold no cycles, and going through them took most of a layout."""
    gc.set_threshold(_COLLECT_EVERY)


def _enter(netns: str, rate: int) -> DataCacheError | None:
    """Move into a network namespace and shape it; why that did not work is for each request to say."""
    from csi.linux import network_namespace  # 14 MB that only those pay who have profiles

    try:
        network_namespace.enter(netns)
        if rate:
            network_namespace.shape(rate)
    except DataCacheError as error:
        return error
    return None


def main() -> None:
    """Serve requests until standard input ends, then leave at once: the journal makes any moment a good one.

    Arguments: the log's format and level, the path of a network namespace ("" for none) and bits per second (0 for no limit).
    """
    log_format, log_level, netns, rate = *sys.argv[1:4], int(sys.argv[4])
    os.nice(_NICE)
    collect_seldom()
    logs.set_up("json" if log_format == "json" else "text", log_level)
    broken = _enter(netns, rate) if netns else None
    # Libraries that print must not reach the pipe that carries events.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=Worker(output, None if netns or not rate else rate // 8, broken).serve, args=(requests,), daemon=True).start()
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
