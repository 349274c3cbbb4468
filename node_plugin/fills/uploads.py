"""Sealed images on their way into the image store: one at a time, behind everything else, gone on with after a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from csi.concurrency.deadline import Patience
from csi.errors import Busy, DataCacheError
from csi.image_store.client import StoredImages
from csi.images.node_store.store import Store
from csi.images.progress import FillProgress
from csi.worker.pool import Call

log = logging.getLogger("datacache.uploads")

_ERROR_KEPT_SECONDS = 60.0


@dataclass
class _Upload:
    call: Call = field(default_factory=Call)
    progress: FillProgress = field(default_factory=FillProgress)
    waiters: set[Patience] = field(default_factory=set)
    error: Exception | None = None
    ended: float = 0.0

    def on_progress(self, progress: FillProgress) -> None:
        """Remember how far it is."""
        self.progress = progress

    @property
    def stale(self) -> bool:
        """An error nobody came to hear is told to the next caller, but not to one that comes much later."""
        return self.ended > 0 and (self.error is None or time.monotonic() - self.ended > _ERROR_KEPT_SECONDS)


class Uploads:
    """Brings images of `store` to the image store. Two nodes that bring one at once do no harm. Thread-safe."""

    def __init__(self, store: Store, stored: StoredImages) -> None:
        self._store, self._stored = store, stored
        self._guard, self._turn = threading.Lock(), threading.Lock()
        self._there: set[str] = set()
        self._under_way: dict[str, _Upload] = {}

    def done(self, digest: str) -> bool:
        """Whether the image store is known to have the image, or there is none to have it."""
        return not self._stored.there or digest in self._there

    def progress(self, digest: str) -> FillProgress | None:
        """How far an upload is that is under way."""
        upload = self._under_way.get(digest)
        return upload.progress if upload else None

    def bring(self, digest: str, patience: Patience, access: Mapping[str, str] | None = None) -> None:
        """Return when the image store has the sealed image. Raises Busy with the progress when `patience` ends first (the work goes on),
        NotFound where the node has no such image any more, and what a Backend raises.

        `access` is the pinned spec of a place that is known to hold its bytes; without it that is where its manifest says.
        """
        while not self.done(digest):
            upload = self._join(digest, patience, access)
            while not upload.ended and not patience.over:
                patience.sleep()
            with self._guard:
                upload.waiters.discard(patience)
            if not upload.ended or patience.cancelled:
                raise Busy(patience.cancelled or f"bringing the image to the image store: {upload.progress.shown()}")
            if upload.error:
                with self._guard:
                    self._under_way.pop(digest, None)
                raise upload.error

    def forget(self, digest: str) -> None:
        """The image is not wanted any more: whoever wants it again has the image store asked."""
        self._there.discard(digest)

    def stop(self) -> None:
        """Stop what is under way; what the image store has of it stays there."""
        with self._guard:
            calls = [upload.call for upload in self._under_way.values()]
        for call in calls:
            call.stop()

    def _join(self, digest: str, patience: Patience, access: Mapping[str, str] | None) -> _Upload:
        with self._guard:
            self._under_way = {other: kept for other, kept in self._under_way.items() if not kept.stale}
            upload = self._under_way.get(digest)
            if upload is None:
                upload = self._under_way[digest] = _Upload()
                threading.Thread(target=self._run, args=(digest, upload, access), name="upload", daemon=True).start()
            upload.waiters.add(patience)
            return upload

    def _run(self, digest: str, upload: _Upload, access: Mapping[str, str] | None) -> None:
        began = time.monotonic()
        try:
            with self._store.hold(digest) as record, self._turn:
                self._stored.bring(record.paths.folder, upload.call, upload.on_progress, access)
            self._there.add(digest)
            log.info(
                "image stored", extra={"fields": {"image": digest, "bytes": upload.progress.bytes_total, "s": round(time.monotonic() - began, 2)}}
            )
        except Exception as error:
            upload.error = error
            reason = str(error) if isinstance(error, DataCacheError) else type(error).__name__
            log.warning("image not stored", extra={"fields": {"image": digest, "reason": reason}})
        with self._guard:
            upload.ended = time.monotonic()
            for patience in upload.waiters:
                patience.wake()
