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
from csi.image_store.location import image_store
from csi.images.progress import FillProgress
from csi.worker.pool import Call, WorkerPool
from csi.worker.protocol import Request

LANE, COPY_LANE = "store", "copy"
_AWAY_SECONDS = 30.0


@dataclass(frozen=True)
class StoreAccess:
    """The image store's `url`, "" for none, and the folder with its credential, one file a key as a Secret is mounted; None for none."""

    url: str = ""
    folder: Path | None = None

    def credential(self) -> dict[str, str]:
        """The credential as it is now. Raises FailedPrecondition, naming the folder."""
        if self.folder is None:
            return {}
        try:
            files = [path for path in self.folder.iterdir() if path.is_file() and not path.name.startswith(".")]
            return {path.name: path.read_text().strip() for path in files}
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "a file that is no text"
            raise FailedPrecondition(f"the folder of --image-store-secret, {self.folder}, cannot be read: {why}; mount the Secret there") from error

    def check(self) -> None:
        """Raise InvalidParameter where the URL names no image store."""
        if self.url:
            image_store(self.url)


@dataclass(frozen=True)
class Stored:
    """An image that the image store has: the pinned spec, as flat parameters, of a place that is known to hold its bytes, its sizes, and when
    it came (seconds since 1970). `damaged` says what is wrong with one that cannot be had."""

    digest: str
    access: Mapping[str, str] = field(default_factory=dict)
    image_bytes: int = 0
    content_bytes: int = 0
    stored_at: float = 0.0
    damaged: str = ""

    @staticmethod
    def from_json(facts: Mapping[str, Any]) -> Stored:
        """Return the image of which a worker has told these facts."""
        return Stored(
            digest=facts["digest"],
            access=facts.get("access", {}),
            image_bytes=facts.get("image_bytes", 0),
            content_bytes=facts.get("content_bytes", 0),
            stored_at=facts.get("stored_at", 0.0),
            damaged=facts.get("damaged", ""),
        )


@dataclass(frozen=True)
class Sought:
    """What a look for an image gave: `found`, or None and `why` ("" where there is no image store). `store` and `secrets` are for a fill."""

    found: Stored | None = None
    why: str = ""
    store: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def carried_by(self, request: Request) -> Request:
        """Return a request to fill that takes the image from the image store, or says why not."""
        return replace(request, image_store=self.store, store_secrets=dict(self.secrets), store_said=self.why)


class StoredImages:
    """The images of one image store. Thread-safe; a pool has a lane LANE for it. All raise FailedPrecondition and the errors of a Backend."""

    def __init__(self, pool: WorkerPool, access: StoreAccess) -> None:
        self._pool, self._access = pool, access
        self._away_until, self._away = float("-inf"), ""

    @property
    def place(self) -> str:
        """Where it is, without options; "" for none."""
        return self._access.url.partition("?")[0]

    @property
    def there(self) -> bool:
        """Whether there is an image store."""
        return bool(self._access.url)

    def with_image_store(self, request: Request) -> Request:
        """Return the request with the image store and its credential, so that a fill looks there first; as it is where there is none."""
        if not self.there:
            return request
        return replace(request, image_store=self._access.url, store_secrets=self._access.credential())

    def seek(self, digest: str) -> Sought:
        """Look for the image, so that a fill takes it from here where it can.

        What could not be reached is not asked again for a while: fills are not to wait for it. Raises Busy where the plugin leaves.
        """
        why = self._away if time.monotonic() < self._away_until else ""
        try:
            if not why and (found := self.find(digest)):
                return Sought(found, "", self._access.url, self._access.credential())
        except Busy:
            raise
        except DataCacheError as error:
            why = str(error)
            if isinstance(error, OriginUnavailable):
                self._away_until, self._away = time.monotonic() + _AWAY_SECONDS, why
        return Sought(None, why or "the image store does not have this image") if self.there else Sought()

    def find(self, name: str) -> Stored | None:
        """The image of a digest or snapshot id, None where there is none, or no image store."""
        found = self._ask(Request("stored", {}, {}, digest=name)) if self.there else {}
        return Stored.from_json(found) if found else None

    def manifest(self, digest: str, path: Path) -> Stored:
        """Write the manifest of an image to `path`, where nothing is; raises NotFound."""
        return Stored.from_json(self._ask(Request("stored-manifest", {}, {}, digest=digest, manifest=str(path))))

    def bring(self, folder: Path, call: Call, tell: Callable[[FillProgress], None], access: Mapping[str, str] | None = None) -> None:
        """Bring the sealed image in `folder` there; what is there of it already is not sent again. Raises Busy where `call` was stopped.

        `access` is the pinned spec of a place that is known to hold its bytes; without it that is where its manifest says.
        """
        request = Request("store", {}, {}, image=str(folder), access=dict(access or {}))
        self._pool.call(LANE, self.with_image_store(request), call, tell)

    def all(self) -> list[Stored]:
        """All images, by digest, the damaged too."""
        with tempfile.TemporaryDirectory(prefix="datacache-") as folder:
            listed = Path(folder, "images")
            self._ask(Request("stored-images", {}, {}, manifest=str(listed)))
            with listed.open() as lines:
                return [Stored.from_json(json.loads(line)) for line in lines]

    def collect(self, wanted: Collection[str], grace: float, scratch: Path) -> list[str]:
        """Remove what is not `wanted` and was not for `grace` seconds; the digests of what is gone. `scratch` is a path for a file, gone then."""
        scratch.write_text("\n".join(wanted))
        try:
            return list(self._ask(Request("collect", {}, {}, manifest=str(scratch), grace=grace))["gone"])
        finally:
            scratch.unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Remove an image; one that is not there is no error."""
        self._ask(Request("unstore", {}, {}, digest=digest))

    def copy_to(self, target: StoredImages, digest: str, call: Call) -> None:
        """Bring an image to another image store, in the lane COPY_LANE; what is there of it already is not sent again. Raises NotFound,
        CorruptContent, and Busy where `call` was stopped."""
        url, secrets = target._access.url, target._access.credential()
        request = Request("copy", {}, {}, digest=digest, target=url, target_secrets=secrets)
        self._pool.call(COPY_LANE, self.with_image_store(request), call)

    def announce(self, announcement: Announcement) -> None:
        """Say that an image is to become a DataCache where this image store is."""
        self._ask(Request("announce", {}, {}, announcement=announcement.encode()))

    def announced(self, damaged: Callable[[str], None] = lambda why: None) -> list[Announcement]:
        """All that was said and can be read; `damaged` is told of the others."""
        found = self._ask(Request("announced", {}, {})) if self.there else {"announced": (), "damaged": ()}
        for why in found["damaged"]:
            damaged(why)
        return [Announcement.of(one) for one in found["announced"]]

    def withdraw(self, announcement: Announcement) -> None:
        """Say so no more."""
        self._ask(Request("withdraw", {}, {}, announcement=announcement.encode()))

    def _ask(self, request: Request) -> dict[str, Any]:
        return self._pool.call(LANE, self.with_image_store(request))
