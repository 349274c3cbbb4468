"""Sealed images on their way into the image store: one at a time, behind everything else, gone on with after a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Deadline
from csi.errors import Busy, DataCacheError
from csi.image_store.client import ImageStoreClient
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress
from csi.worker.pool import WorkerCall

log = logging.getLogger("datacache.uploads")

_ERROR_TTL = 60.0


@dataclass
class _Upload:
    call: WorkerCall = field(default_factory=WorkerCall)
    progress: FillProgress = field(default_factory=FillProgress)
    waiters: set[Deadline] = field(default_factory=set)
    error: Exception | None = None
    ended_at: float = 0.0

    def on_progress(self, progress: FillProgress) -> None:
        """Remember how far it is."""
        self.progress = progress

    @property
    def is_stale(self) -> bool:
        """An error nobody came to hear is told to the next caller, but not to one that comes much later."""
        return self.ended_at > 0 and (self.error is None or time.monotonic() - self.ended_at > _ERROR_TTL)


class Uploads:
    """Brings images of `store` to the image store. Two nodes that bring one at once do no harm. Thread-safe."""

    def __init__(self, store: Store, image_store: ImageStoreClient) -> None:
        self._store, self._image_store = store, image_store
        self._lock, self._upload_lock = threading.Lock(), threading.Lock()
        self._uploaded: set[str] = set()
        self._running: dict[str, _Upload] = {}

    def is_uploaded(self, digest: str) -> bool:
        """Whether the image store is known to have the image, or there is none to have it."""
        return not self._image_store.is_configured or digest in self._uploaded

    def get_progress(self, digest: str) -> FillProgress | None:
        """How far an upload is that is under way."""
        upload = self._running.get(digest)
        return upload.progress if upload else None

    def wait_until_uploaded(
        self, digest: str, deadline: Deadline, access: Mapping[str, str] | None = None
    ) -> None:
        """Return when the image store has the sealed image. Raises Busy with the progress when `deadline` ends first (the work goes on),
        NotFound where the node has no such image any more, and what a Backend raises.

        `access` is the pinned spec of a place that is known to hold its bytes; without it that is where its manifest says.
        """
        while not self.is_uploaded(digest):
            upload = self._join(digest, deadline, access)
            while not upload.ended_at and not deadline.is_over:
                deadline.sleep()
            with self._lock:
                upload.waiters.discard(deadline)
            if not upload.ended_at or deadline.cancelled:
                raise Busy(
                    deadline.cancelled or f"bringing the image to the image store: {upload.progress.format()}"
                )
            if upload.error:
                with self._lock:
                    self._running.pop(digest, None)
                raise upload.error

    def forget(self, digest: str) -> None:
        """The image is not wanted any more: whoever wants it again has the image store asked."""
        self._uploaded.discard(digest)

    def stop(self) -> None:
        """Stop what is under way; what the image store has of it stays there."""
        with self._lock:
            calls = [upload.call for upload in self._running.values()]
        for call in calls:
            call.stop()

    def _join(self, digest: str, deadline: Deadline, access: Mapping[str, str] | None) -> _Upload:
        with self._lock:
            self._running = {other: kept for other, kept in self._running.items() if not kept.is_stale}
            upload = self._running.get(digest)
            if upload is None:
                upload = self._running[digest] = _Upload()
                threading.Thread(
                    target=self._run_upload, args=(digest, upload, access), name="upload", daemon=True
                ).start()
            upload.waiters.add(deadline)
            return upload

    def _run_upload(self, digest: str, upload: _Upload, access: Mapping[str, str] | None) -> None:
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
            upload.error = error
            reason = str(error) if isinstance(error, DataCacheError) else type(error).__name__
            log.warning("image not stored", extra={"fields": {"image": digest, "reason": reason}})
        with self._lock:
            upload.ended_at = time.monotonic()
            for deadline in upload.waiters:
                deadline.wake()
