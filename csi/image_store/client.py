"""Client of the image store on the plugin's side.

Every call is executed by a worker, with the driver's own credential as mounted at that moment.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csi.errors import Busy, DataCacheError, FailedPrecondition, OriginUnavailable
from csi.image_store.announcements import Announcement
from csi.image_store.location import parse_image_store_url
from csi.images.progress import FillProgress
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.protocol import WorkerRequest

STORE_LANE, COPY_LANE = "store", "copy"
# Seconds during which an unreachable image store is not tried again.
_IMAGE_STORE_RETRY_INTERVAL = 30.0


@dataclass(frozen=True)
class ImageStoreConfig:
    """Configuration of the image store: its `url`, "" for none, and the folder with its credential, if any.

    The folder has one file per key, as a mounted Secret does.
    """

    url: str = ""
    folder: Path | None = None

    def read_credential(self) -> dict[str, str]:
        """Read the credential; raises FailedPrecondition, which names the folder."""
        if self.folder is None:
            return {}
        try:
            # Names with a leading dot are kubelet's: links to the current version of the Secret.
            files = [
                path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")
            ]
            return {path.name: path.read_text().strip() for path in files}
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a file is not text"
            raise FailedPrecondition(
                f"the folder of --image-store-secret, {self.folder}, cannot be read: {reason}; "
                "mount the Secret there"
            ) from error

    def check_url(self) -> None:
        """Raise InvalidParameter if the URL is not that of an image store."""
        if self.url:
            parse_image_store_url(self.url)


@dataclass(frozen=True)
class StoredImageInfo:
    """An image in the image store, with its sizes and upload time (seconds since 1970).

    `access` is the pinned spec, as flat parameters, of an origin that is known to hold its bytes. `damaged`
    is the error of an image that cannot be read, "" for all others.
    """

    digest: str
    access: Mapping[str, str] = field(default_factory=dict)
    image_bytes: int = 0
    content_bytes: int = 0
    stored_at: float = 0.0
    damaged: str = ""

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> StoredImageInfo:
        """Return the image described by a worker's result."""
        return StoredImageInfo(
            digest=facts["digest"],
            access=facts.get("access", {}),
            image_bytes=facts.get("image_bytes", 0),
            content_bytes=facts.get("content_bytes", 0),
            stored_at=facts.get("stored_at", 0.0),
            damaged=facts.get("damaged", ""),
        )


@dataclass(frozen=True)
class StoredImageLookup:
    """Result of a lookup: `found`, or None and the reason `why` ("" without an image store).

    `store` and `secrets` are what a fill needs to read the image.
    """

    found: StoredImageInfo | None = None
    why: str = ""
    store: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def add_to(self, request: WorkerRequest) -> WorkerRequest:
        """Return a fill request that reads from the image store, or has the reason why it cannot."""
        return replace(
            request, image_store=self.store, store_secrets=dict(self.secrets), image_store_error=self.why
        )


class ImageStoreClient:
    """The images of one image store. Thread-safe.

    The pool must have the lane STORE_LANE, and COPY_LANE for `copy_to`.
    All methods raise FailedPrecondition (no credential) and the errors of a Backend.
    """

    def __init__(self, pool: WorkerPool, config: ImageStoreConfig) -> None:
        self._pool, self._config = pool, config
        self._retry_at = float("-inf")
        self._last_error = ""

    @property
    def location(self) -> str:
        """The image store's URL without options; "" for none."""
        return self._config.url.partition("?")[0]

    @property
    def is_configured(self) -> bool:
        """Whether an image store is configured."""
        return bool(self._config.url)

    def with_image_store(self, request: WorkerRequest) -> WorkerRequest:
        """Return the request with the image store and its credential; unchanged if none is configured."""
        if not self.is_configured:
            return request
        return replace(request, image_store=self._config.url, store_secrets=self._config.read_credential())

    def find_for_fill(self, digest: str) -> StoredImageLookup:
        """Look up the image for a fill; a failure is a reason in the result, not an error.

        An image store that was unreachable is not tried again for a while, so that fills do not wait for it.
        Raises Busy if the plugin is shutting down.
        """
        reason = self._last_error if time.monotonic() < self._retry_at else ""
        try:
            if not reason and (found := self.find(digest)):
                return StoredImageLookup(found, "", self._config.url, self._config.read_credential())
        # The plugin is shutting down; that is no failure of the image store.
        except Busy:
            raise
        except DataCacheError as error:
            reason = str(error)
            # Other errors come at once, so that trying again costs nothing.
            if isinstance(error, OriginUnavailable):
                self._retry_at = time.monotonic() + _IMAGE_STORE_RETRY_INTERVAL
                self._last_error = reason
        if not self.is_configured:
            return StoredImageLookup()
        return StoredImageLookup(None, reason or "the image store does not have this image")

    def find(self, name: str) -> StoredImageInfo | None:
        """Return the image of a digest or snapshot id; None if there is none, or no image store."""
        found = self._call(WorkerRequest("stored", {}, {}, digest=name)) if self.is_configured else {}
        return StoredImageInfo.from_json(found) if found else None

    def write_manifest(self, digest: str, path: Path) -> StoredImageInfo:
        """Write the manifest of an image to `path`, which must not exist; raises NotFound."""
        return StoredImageInfo.from_json(
            self._call(WorkerRequest("stored-manifest", {}, {}, digest=digest, manifest=str(path)))
        )

    def upload(
        self,
        folder: Path,
        call: WorkerCall,
        on_progress: Callable[[FillProgress], None],
        access: Mapping[str, str] | None = None,
    ) -> None:
        """Upload the sealed image in `folder`, skipping parts that are stored already.

        `access` is the pinned spec of an origin that is known to hold its bytes, by default the manifest's.
        Raises Busy if `call` was stopped.
        """
        request = WorkerRequest("store", {}, {}, image=str(folder), access=dict(access or {}))
        self._pool.call(STORE_LANE, self.with_image_store(request), call, on_progress)

    def list_images(self) -> list[StoredImageInfo]:
        """List all images by digest, including damaged ones."""
        # Through a file, so that the worker's pipe carries no long listing.
        with tempfile.TemporaryDirectory(prefix="datacache-") as folder:
            listing = Path(folder, "images")
            self._call(WorkerRequest("stored-images", {}, {}, manifest=str(listing)))
            with listing.open() as lines:
                return [StoredImageInfo.from_json(json.loads(line)) for line in lines]

    def collect(self, wanted_digests: Collection[str], grace_seconds: float, scratch_path: Path) -> list[str]:
        """Remove images that have been out of `wanted_digests` for `grace_seconds`; return their digests.

        `scratch_path` is a path for a temporary file.
        """
        # A file, since there may be many thousands of digests.
        scratch_path.write_text("\n".join(wanted_digests))
        try:
            request = WorkerRequest("collect", {}, {}, manifest=str(scratch_path), grace=grace_seconds)
            return list(self._call(request)["gone"])
        finally:
            scratch_path.unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Remove an image; a missing one is no error."""
        self._call(WorkerRequest("unstore", {}, {}, digest=digest))

    def copy_to(self, target: ImageStoreClient, digest: str, call: WorkerCall) -> None:
        """Copy an image to another image store, skipping parts that are stored there already.

        Raises NotFound, CorruptContent, and Busy if `call` was stopped.
        """
        url = target._config.url
        secrets = target._config.read_credential()
        request = WorkerRequest("copy", {}, {}, digest=digest, target_store=url, target_secrets=secrets)
        self._pool.call(COPY_LANE, self.with_image_store(request), call)

    def announce(self, announcement: Announcement) -> None:
        """Publish that an image is to become a DataCache in the region of this image store."""
        self._call(WorkerRequest("announce", {}, {}, announcement=announcement.encode()))

    def list_announcements(self, on_damaged: Callable[[str], None] = lambda why: None) -> list[Announcement]:
        """List all readable announcements; `on_damaged` gets the error of each other one."""
        if not self.is_configured:
            return []
        result = self._call(WorkerRequest("announced", {}, {}))
        for error_text in result["damaged"]:
            on_damaged(error_text)
        return [Announcement.decode(encoded) for encoded in result["announced"]]

    def withdraw(self, announcement: Announcement) -> None:
        """Remove an announcement."""
        self._call(WorkerRequest("withdraw", {}, {}, announcement=announcement.encode()))

    def _call(self, request: WorkerRequest) -> dict[str, Any]:
        return self._pool.call(STORE_LANE, self.with_image_store(request))
