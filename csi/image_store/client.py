"""Client of the image store on the plugin's side.

Every call is executed by a worker, with the driver's own credential as mounted at that moment.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from csi.errors import Busy, DataCacheError, FailedPrecondition, OriginUnavailable
from csi.image_store.announcements import Announcement
from csi.image_store.location import parse_image_store_url
from csi.images.progress import FillProgress
from csi.parameters.content_ref import Secrets
from csi.worker.operations import (
    Announce,
    CollectStoredImages,
    CopyStoredImage,
    FetchStoredManifest,
    FindStoredImage,
    ImageStoreRef,
    ListAnnouncements,
    ListStoredImages,
    Operation,
    RemoveStoredImage,
    Result,
    UploadImage,
    WithdrawAnnouncement,
)
from csi.worker.pool import WorkerCall, WorkerPool
from csi.worker.results import StoredImageInfo

IMAGE_STORE_LANE, COPY_LANE = "store", "copy"
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
class StoredImageLookup:
    """Result of a lookup: the image `found` in `image_store`, or None and the `reason`.

    Without an image store, the reason is "".
    """

    found: StoredImageInfo | None = None
    reason: str = ""
    image_store: ImageStoreRef = field(default_factory=ImageStoreRef)


class ImageStoreClient:
    """The images of one image store. Thread-safe.

    The pool must have the lane IMAGE_STORE_LANE, and COPY_LANE for `copy_to`.
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

    def read_reference(self) -> ImageStoreRef:
        """Return the reference with the credential as it is now; an empty one without an image store."""
        if not self.is_configured:
            return ImageStoreRef()
        return ImageStoreRef(self._config.url, Secrets(self._config.read_credential()))

    def find_for_fill(self, digest: str) -> StoredImageLookup:
        """Look up the image for a fill; a failure is a reason in the result, not an error.

        An image store that was unreachable is not tried again for a while, so that fills do not wait for it.
        Raises Busy if the plugin is shutting down.
        """
        if not self.is_configured:
            return StoredImageLookup()
        if time.monotonic() < self._retry_at:
            return StoredImageLookup(None, self._last_error)
        try:
            image_store = self.read_reference()
            found = self._call(FindStoredImage(image_store, digest))
        # The plugin is shutting down; that is no failure of the image store.
        except Busy:
            raise
        except DataCacheError as error:
            # Other errors come at once, so that trying again costs nothing.
            if isinstance(error, OriginUnavailable):
                self._last_error = str(error)
                self._retry_at = time.monotonic() + _IMAGE_STORE_RETRY_INTERVAL
            return StoredImageLookup(None, str(error))
        if found is None:
            return StoredImageLookup(None, "the image store does not have this image")
        return StoredImageLookup(found, "", image_store)

    def find(self, name: str) -> StoredImageInfo | None:
        """Return the image of a digest or snapshot id; None if there is none, or no image store."""
        return self._call(FindStoredImage(self.read_reference(), name)) if self.is_configured else None

    def write_manifest(self, digest: str, path: Path) -> StoredImageInfo:
        """Write the manifest of an image to `path`, which must not exist; raises NotFound."""
        return self._call(FetchStoredManifest(self.read_reference(), digest, path))

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
        operation = UploadImage(self.read_reference(), folder, access or {})
        self._pool.call(IMAGE_STORE_LANE, operation, call, on_progress)

    def list_images(self) -> list[StoredImageInfo]:
        """List all images by digest, including damaged ones."""
        with tempfile.TemporaryDirectory(prefix="datacache-") as folder:
            listing = Path(folder, "images")
            self._call(ListStoredImages(self.read_reference(), listing))
            with listing.open() as lines:
                return [StoredImageInfo.decode(json.loads(line)) for line in lines]

    def collect(self, wanted_digests: Collection[str], grace_seconds: float, scratch_path: Path) -> list[str]:
        """Remove images that have been out of `wanted_digests` for `grace_seconds`; return their digests.

        `scratch_path` is a path for a temporary file.
        """
        scratch_path.write_text("\n".join(wanted_digests))
        try:
            return self._call(CollectStoredImages(self.read_reference(), scratch_path, grace_seconds))
        finally:
            scratch_path.unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Remove an image; a missing one is no error."""
        self._call(RemoveStoredImage(self.read_reference(), digest))

    def copy_to(self, target: ImageStoreClient, digest: str, call: WorkerCall) -> None:
        """Copy an image to another image store, skipping parts that are stored there already.

        Raises NotFound, CorruptContent, and Busy if `call` was stopped.
        """
        target_store = target.read_reference()
        self._pool.call(COPY_LANE, CopyStoredImage(self.read_reference(), target_store, digest), call)

    def announce(self, announcement: Announcement) -> None:
        """Publish that an image is to become a DataCache in the region of this image store."""
        self._call(Announce(self.read_reference(), announcement.encode()))

    def list_announcements(self, on_damaged: Callable[[str], None] = lambda _: None) -> list[Announcement]:
        """List all readable announcements; `on_damaged` gets the error of each other one."""
        if not self.is_configured:
            return []
        listing = self._call(ListAnnouncements(self.read_reference()))
        for error_text in listing.damaged:
            on_damaged(error_text)
        return [Announcement.decode(encoded) for encoded in listing.announcements]

    def withdraw(self, announcement: Announcement) -> None:
        """Remove an announcement."""
        self._call(WithdrawAnnouncement(self.read_reference(), announcement.encode()))

    def _call(self, operation: Operation[Result]) -> Result:
        return self._pool.call(IMAGE_STORE_LANE, operation)
