"""In the place of a WorkerPool: one scripted source, resolved and filled in this process, held back and
made to fail by tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from csi.errors import Busy, PermissionDenied
from csi.images.fill.fill import fill, seal
from csi.images.fill.verify_against_origin import verify_against_origin
from csi.images.layout.layout import build_layout
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest, build_manifest
from csi.parameters.content_ref import Secrets
from csi.parameters.volume_parameters import parse_volume_parameters
from csi.worker.operations import FillImage, Operation, PinSource, ResolveSource, VerifyImage
from csi.worker.pool import WorkerCall
from csi.worker.results import Resolution
from tests.csi.images.origin import FakeOrigin
from tests.csi.images.trees import file

COMMITS = ("a" * 40, "b" * 40)
_TICK = 0.005


class InProcess:
    """A source of `files` (path to size) at `commit`.

    Clear `go` to hold resolves back, `go_fill` fills, `go_verify` comparisons; set an error to have it
    raised.
    """

    def __init__(self, files: Mapping[str, int] | None = None) -> None:
        self.files = dict(files or {"config.json": 20, "weights/a.bin": 10_000})
        self.commit = COMMITS[0]
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.fill_error: Exception | None = None
        self.readers: set[str] | None = None
        """The tokens that may read; None for everybody."""
        self.content_bytes: int | None = None
        """What the source is said to hold, where it is not what `files` add up to."""
        self.origin = FakeOrigin()
        self.go_verify = threading.Event()
        self.go_verify.set()
        self.go, self.go_fill, self.filling = threading.Event(), threading.Event(), threading.Semaphore(0)
        self.go.set()
        self.go_fill.set()

    @property
    def operations(self) -> list[str]:
        """What was asked, in order."""
        return [operation.name for operation in self.asked]

    def call(
        self,
        lane: str,
        operation: Operation[Any],
        call: WorkerCall | None = None,
        on_progress: Callable[[FillProgress], None] = lambda _: None,
    ) -> Any:
        """As WorkerPool.call."""
        self.asked.append(operation)
        call = call or WorkerCall()
        match operation:
            case FillImage():
                return self._fill(operation, call, on_progress)
            case VerifyImage():
                return self._verify(operation, call)
        assert isinstance(operation, PinSource | ResolveSource)
        self._wait(call)
        if self.error:
            raise self.error
        self._check(operation.secrets)
        if isinstance(operation, PinSource):
            return parse_volume_parameters({**operation.spec.to_context(), "revision": self.commit}).spec
        return self._resolve(operation)

    def _wait(self, call: WorkerCall) -> None:
        end = time.monotonic() + 30
        while not self.go.wait(_TICK):
            assert time.monotonic() < end, "the test never let the resolve go"
            if call.stopped:
                raise Busy("the work was stopped; call again to go on")

    @property
    def digest(self) -> str:
        """The digest of what the source holds now."""
        return self._manifest({}).digest

    def _manifest(self, access: dict[str, str]) -> Manifest:
        return build_manifest(
            [
                file(f"at-{access.get('revision', self.commit)[:8]}", 1),
                *(file(path, size) for path, size in self.files.items()),
            ],
            access,
        )

    def _check(self, secrets: Secrets) -> None:
        if self.readers is not None and secrets.values.get("token") not in self.readers:
            raise PermissionDenied("this token may not read")

    def _resolve(self, operation: ResolveSource) -> Resolution:
        manifest = self._manifest(operation.spec.to_context())
        if operation.manifest:
            with operation.manifest.open("xb") as stream:
                manifest.write(stream)
        size = manifest.content_bytes if self.content_bytes is None else self.content_bytes
        return Resolution(
            operation.spec,
            manifest.digest,
            size,
            build_layout(manifest).size,
            len(self.files) + 1,
            0,
        )

    def _fill(
        self, operation: FillImage, call: WorkerCall, on_progress: Callable[[FillProgress], None]
    ) -> None:
        self.filling.release()
        while not self.go_fill.wait(_TICK):
            on_progress(FillProgress(2**20, 5 * 2**20, 2**20, 2.0**20, 4.0))
            if call.stopped:
                raise Busy("the work was stopped; call again to go on")
        if self.fill_error:
            raise self.fill_error
        self._check(operation.content.secrets)
        paths = ImagePaths(operation.folder)
        with paths.manifest.open("rb") as stream:
            layout = build_layout(Manifest.read(stream))
        donors = [ImagePaths(folder) for folder in operation.reuse_candidates]
        fill(
            layout,
            paths.partial,
            paths.journal,
            self.origin.open,
            max_connections=1,
            reuse_candidates=donors,
            on_progress=on_progress,
        )
        seal(paths.partial, paths.image, paths.journal)

    def _verify(self, operation: VerifyImage, call: WorkerCall) -> None:
        while not self.go_verify.wait(_TICK):
            if call.stopped:
                raise Busy("the work was stopped; call again to go on")
        self._check(operation.content.secrets)
        paths = ImagePaths(operation.folder)
        with paths.manifest.open("rb") as stream:
            layout = build_layout(Manifest.read(stream))
        verify_against_origin(
            layout, paths.image, self.origin.open, bytes.fromhex(operation.seed), max_connections=1
        )
