"""Uploads of sealed images to the image store: one at a time, resumed after a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Deadline
from csi.concurrency.single_flight import Job, SingleFlight
from csi.errors import DataCacheError
from csi.image_store.client import ImageStoreClient
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress
from csi.worker.pool import WorkerCall

log = logging.getLogger("datacache.uploads")


@dataclass(eq=False)
class _Upload(Job):
    """A running upload: `work(upload)` does it, and can be stopped through the call."""

    work: Callable[[_Upload], None]
    call: WorkerCall = field(default_factory=WorkerCall)
    progress: FillProgress = field(default_factory=FillProgress)

    def run(self) -> None:
        self.work(self)

    def stop(self) -> None:
        self.call.stop()

    def on_progress(self, progress: FillProgress) -> None:
        """Store the progress, for `Uploads.get_progress`."""
        self.progress = progress


class Uploads:
    """Uploads of images of `store`. Thread-safe; two nodes may upload the same image at once."""

    def __init__(self, store: Store, image_store: ImageStoreClient) -> None:
        self._store, self._image_store = store, image_store
        # One at a time: no pod waits for an upload.
        self._upload_lock = threading.Lock()
        self._uploaded: set[str] = set()
        self._uploads = SingleFlight[str, _Upload]("upload")

    def is_uploaded(self, digest: str) -> bool:
        """Return whether the image store is known to have the image, or none is configured."""
        return not self._image_store.is_configured or digest in self._uploaded

    def get_progress(self, digest: str) -> FillProgress | None:
        """Return the progress of a running upload, None if none is running."""
        upload = self._uploads.find(digest)
        return upload.progress if upload else None

    def wait_until_uploaded(
        self, digest: str, deadline: Deadline, access: Mapping[str, str] | None = None
    ) -> None:
        """Return when the image store has the sealed image, uploading it if necessary.

        `access` is the pinned spec of an origin that is known to hold its bytes, by default the manifest's.
        Raises Busy with the progress if `deadline` ends first (the upload goes on), NotFound if the node does
        not have the image any more, and the errors of a Backend.
        """

        def work(upload: _Upload) -> None:
            self._upload(digest, upload, access)

        def describe(upload: _Upload) -> str:
            return f"uploading the image to the image store: {upload.progress.format()}"

        while not self.is_uploaded(digest):
            self._uploads.wait(digest, _Upload(work), deadline, describe)

    def forget(self, digest: str) -> None:
        """Forget that an image was uploaded, since it may be collected once no request needs it."""
        self._uploaded.discard(digest)

    def stop(self) -> None:
        """Stop the running upload; the parts that are stored stay."""
        self._uploads.stop_all()

    def _upload(self, digest: str, upload: _Upload, access: Mapping[str, str] | None) -> None:
        started_at = time.monotonic()
        try:
            # In this order: the image is protected while its upload waits for its turn, too.
            with self._store.prevent_eviction(digest) as record, self._upload_lock:
                self._image_store.upload(record.paths.folder, upload.call, upload.on_progress, access)
            self._uploaded.add(digest)
            fields = {
                "image": digest,
                "bytes": upload.progress.bytes_total,
                "seconds": round(time.monotonic() - started_at, 2),
            }
            log.info("image stored", extra={"fields": fields})
        except Exception as error:
            # A foreign exception's text is not vetted for secrets.
            reason = str(error) if isinstance(error, DataCacheError) else type(error).__name__
            log.warning("image not stored", extra={"fields": {"image": digest, "reason": reason}})
            raise
