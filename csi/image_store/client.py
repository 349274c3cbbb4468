"""The image store on the plugin's side: every call is carried out by a worker, with the driver's own credential as it is then."""

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
_IMAGE_STORE_RETRY_INTERVAL = 30.0


@dataclass(frozen=True)
class ImageStoreConfig:
    """The image store's `url`, "" for none, and the folder with its credential, one file a key as a Secret is mounted; None for none."""

    url: str = ""
    folder: Path | None = None

    def read_credential(self) -> dict[str, str]:
        """The credential as it is now. Raises FailedPrecondition, naming the folder."""
        if self.folder is None:
            return {}
        try:
            files = [
                path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")
            ]
            return {path.name: path.read_text().strip() for path in files}
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "a file that is no text"
            raise FailedPrecondition(
                f"the folder of --image-store-secret, {self.folder}, cannot be read: {why}; "
                "mount the Secret there"
            ) from error

    def check_url(self) -> None:
        """Raise InvalidParameter where the URL names no image store."""
        if self.url:
            parse_image_store_url(self.url)


@dataclass(frozen=True)
class StoredImageInfo:
    """An image that the image store has: the pinned spec, as flat parameters, of a place that is known to hold its bytes, its sizes, and when
    it came (seconds since 1970). `damaged` says what is wrong with one that cannot be had."""

    digest: str
    access: Mapping[str, str] = field(default_factory=dict)
    image_bytes: int = 0
    content_bytes: int = 0
    stored_at: float = 0.0
    damaged: str = ""

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> StoredImageInfo:
        """Return the image of which a worker has told these facts."""
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
    """What a look for an image gave: `found`, or None and `why` ("" where there is no image store). `store` and `secrets` are for a fill."""

    found: StoredImageInfo | None = None
    why: str = ""
    store: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def add_to(self, request: WorkerRequest) -> WorkerRequest:
        """Return a request to fill that takes the image from the image store, or says why not."""
        return replace(
            request, image_store=self.store, store_secrets=dict(self.secrets), image_store_error=self.why
        )


class ImageStoreClient:
    """The images of one image store. Thread-safe; a pool has a lane LANE for it. All raise FailedPrecondition and the errors of a Backend."""

    def __init__(self, pool: WorkerPool, config: ImageStoreConfig) -> None:
        self._pool, self._config = pool, config
        self._retry_at, self._last_error = float("-inf"), ""

    @property
    def location(self) -> str:
        """Where it is, without options; "" for none."""
        return self._config.url.partition("?")[0]

    @property
    def is_configured(self) -> bool:
        """Whether there is an image store."""
        return bool(self._config.url)

    def with_image_store(self, request: WorkerRequest) -> WorkerRequest:
        """Return the request with the image store and its credential, so that a fill looks there first; as it is where there is none."""
        if not self.is_configured:
            return request
        return replace(request, image_store=self._config.url, store_secrets=self._config.read_credential())

    def find_for_fill(self, digest: str) -> StoredImageLookup:
        """Look for the image, so that a fill takes it from here where it can.

        What could not be reached is not asked again for a while: fills are not to wait for it. Raises Busy where the plugin leaves.
        """
        reason = self._last_error if time.monotonic() < self._retry_at else ""
        try:
            if not reason and (found := self.find(digest)):
                return StoredImageLookup(found, "", self._config.url, self._config.read_credential())
        except Busy:
            raise
        except DataCacheError as error:
            reason = str(error)
            if isinstance(error, OriginUnavailable):
                self._retry_at, self._last_error = time.monotonic() + _IMAGE_STORE_RETRY_INTERVAL, reason
        return (
            StoredImageLookup(None, reason or "the image store does not have this image")
            if self.is_configured
            else StoredImageLookup()
        )

    def find(self, name: str) -> StoredImageInfo | None:
        """The image of a digest or snapshot id, None where there is none, or no image store."""
        found = self._call(WorkerRequest("stored", {}, {}, digest=name)) if self.is_configured else {}
        return StoredImageInfo.from_json(found) if found else None

    def write_manifest(self, digest: str, path: Path) -> StoredImageInfo:
        """Write the manifest of an image to `path`, where nothing is; raises NotFound."""
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
        """Bring the sealed image in `folder` there; what is there of it already is not sent again. Raises Busy where `call` was stopped.

        `access` is the pinned spec of a place that is known to hold its bytes; without it that is where its manifest says.
        """
        request = WorkerRequest("store", {}, {}, image=str(folder), access=dict(access or {}))
        self._pool.call(STORE_LANE, self.with_image_store(request), call, on_progress)

    def list_images(self) -> list[StoredImageInfo]:
        """All images, by digest, the damaged too."""
        with tempfile.TemporaryDirectory(prefix="datacache-") as folder:
            listing = Path(folder, "images")
            self._call(WorkerRequest("stored-images", {}, {}, manifest=str(listing)))
            with listing.open() as lines:
                return [StoredImageInfo.from_json(json.loads(line)) for line in lines]

    def collect(self, wanted_digests: Collection[str], grace_seconds: float, scratch_path: Path) -> list[str]:
        """Remove what is not `wanted_digests` and was not for `grace_seconds` seconds; the digests of what is gone. `scratch_path` is a path for a file, gone then."""
        scratch_path.write_text("\n".join(wanted_digests))
        try:
            return list(
                self._call(WorkerRequest("collect", {}, {}, manifest=str(scratch_path), grace=grace_seconds))[
                    "gone"
                ]
            )
        finally:
            scratch_path.unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Remove an image; one that is not there is no error."""
        self._call(WorkerRequest("unstore", {}, {}, digest=digest))

    def copy_to(self, target: ImageStoreClient, digest: str, call: WorkerCall) -> None:
        """Bring an image to another image store, in the lane COPY_LANE; what is there of it already is not sent again. Raises NotFound,
        CorruptContent, and Busy where `call` was stopped."""
        url, secrets = target._config.url, target._config.read_credential()
        request = WorkerRequest("copy", {}, {}, digest=digest, target_store=url, target_secrets=secrets)
        self._pool.call(COPY_LANE, self.with_image_store(request), call)

    def announce(self, announcement: Announcement) -> None:
        """Say that an image is to become a DataCache where this image store is."""
        self._call(WorkerRequest("announce", {}, {}, announcement=announcement.encode()))

    def list_announcements(self, on_damaged: Callable[[str], None] = lambda why: None) -> list[Announcement]:
        """All that was said and can be read; `on_damaged` is told of the others."""
        found = (
            self._call(WorkerRequest("announced", {}, {}))
            if self.is_configured
            else {"announced": (), "damaged": ()}
        )
        for why in found["damaged"]:
            on_damaged(why)
        return [Announcement.decode(one) for one in found["announced"]]

    def withdraw(self, announcement: Announcement) -> None:
        """Say so no more."""
        self._call(WorkerRequest("withdraw", {}, {}, announcement=announcement.encode()))

    def _call(self, request: WorkerRequest) -> dict[str, Any]:
        return self._pool.call(STORE_LANE, self.with_image_store(request))
