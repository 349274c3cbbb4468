"""Sealed images on their way into the image store: one at a time, behind everything else, gone on with after a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Deadline
from csi.concurrency.single_flight import SingleFlight
from csi.errors import DataCacheError
from csi.image_store.client import ImageStoreClient
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress
from csi.worker.pool import WorkerCall

log = logging.getLogger("datacache.uploads")


@dataclass(eq=False)
class _Upload:
    """One upload under way: `work(upload)` does it, and can be stopped through the call."""

    work: Callable[[_Upload], None]
    call: WorkerCall = field(default_factory=WorkerCall)
    progress: FillProgress = field(default_factory=FillProgress)

    def run(self) -> None:
        self.work(self)

    def stop(self) -> None:
        self.call.stop()

    def on_progress(self, progress: FillProgress) -> None:
        """Remember how far it is."""
        self.progress = progress


class Uploads:
    """Brings images of `store` to the image store. Two nodes that bring one at once do no harm. Thread-safe."""

    def __init__(self, store: Store, image_store: ImageStoreClient) -> None:
        self._store, self._image_store = store, image_store
        # One at a time: uploads are behind everything else.
        self._upload_lock = threading.Lock()
        self._uploaded: set[str] = set()
        self._uploads = SingleFlight[str, _Upload]("upload")

    def is_uploaded(self, digest: str) -> bool:
        """Whether the image store is known to have the image, or there is none to have it."""
        return not self._image_store.is_configured or digest in self._uploaded

    def get_progress(self, digest: str) -> FillProgress | None:
        """How far an upload is that is under way."""
        upload = self._uploads.find(digest)
        return upload.progress if upload else None

    def wait_until_uploaded(
        self, digest: str, deadline: Deadline, access: Mapping[str, str] | None = None
    ) -> None:
        """Return when the image store has the sealed image. Raises Busy with the progress when `deadline` ends first (the work goes on),
        NotFound where the node has no such image any more, and what a Backend raises.

        `access` is the pinned spec of a place that is known to hold its bytes; without it that is where its manifest says.
        """

        def work(upload: _Upload) -> None:
            self._upload(digest, upload, access)

        def describe(upload: _Upload) -> str:
            return f"bringing the image to the image store: {upload.progress.format()}"

        while not self.is_uploaded(digest):
            self._uploads.wait(digest, lambda: _Upload(work), deadline, describe)

    def forget(self, digest: str) -> None:
        """The image is not wanted any more: whoever wants it again has the image store asked."""
        self._uploaded.discard(digest)

    def stop(self) -> None:
        """Stop what is under way; what the image store has of it stays there."""
        self._uploads.stop_all()

    def _upload(self, digest: str, upload: _Upload, access: Mapping[str, str] | None) -> None:
        began = time.monotonic()
        try:
            with self._store.prevent_eviction(digest) as record, self._upload_lock:
                self._image_store.upload(record.paths.folder, upload.call, upload.on_progress, access)
            self._uploaded.add(digest)
            log.info(
                "image stored",
                extra={
                    "fields": {
                        "image": digest,
                        "bytes": upload.progress.bytes_total,
                        "s": round(time.monotonic() - began, 2),
                    }
                },
            )
        except Exception as error:
            reason = str(error) if isinstance(error, DataCacheError) else type(error).__name__
            log.warning("image not stored", extra={"fields": {"image": digest, "reason": reason}})
            raise
