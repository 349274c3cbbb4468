"""The image store on the plugin's side: every call is carried out by a worker, with the driver's own credential as it is then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi.errors import FailedPrecondition
from csi.images.progress import FillProgress
from csi.spec.image_store import image_store
from csi.worker.pool import Call, WorkerPool
from csi.worker.protocol import Operation, Request

LANE = "store"


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
    """An image that the image store has: its pinned spec as flat parameters, bytes, and when it came (seconds since 1970)."""

    digest: str
    access: Mapping[str, str]
    image_bytes: int
    content_bytes: int
    stored_at: float


class StoredImages:
    """The images of one image store. Thread-safe; a pool has a lane LANE for it. All raise FailedPrecondition and the errors of a Backend."""

    def __init__(self, pool: WorkerPool, access: StoreAccess) -> None:
        self._pool, self._access = pool, access

    @property
    def there(self) -> bool:
        """Whether there is an image store."""
        return bool(self._access.url)

    def of_fill(self) -> dict[str, Any]:
        """What a request to fill carries so that the image store is looked at first."""
        return {"image_store": self._access.url, "store_secrets": self._access.credential()} if self.there else {}

    def find(self, name: str) -> Stored | None:
        """The image of a digest or snapshot id, None where there is none, or no image store."""
        found = self._ask("stored", digest=name) if self.there else {}
        return Stored(**found) if found else None

    def manifest(self, digest: str, path: Path) -> Stored:
        """Write the manifest of an image to `path`, where nothing is; raises NotFound."""
        return Stored(**self._ask("stored-manifest", digest=digest, manifest=str(path)))

    def bring(self, folder: Path, call: Call, tell: Callable[[FillProgress], None]) -> None:
        """Bring the sealed image in `folder` there; what is there of it already is not sent again. Raises Busy where `call` was stopped."""
        self._pool.call(LANE, Request("store", {}, {}, image=str(folder), **self.of_fill()), call, tell)

    def all(self) -> list[Stored]:
        """All images, by digest."""
        return [Stored(**found) for found in self._ask("stored-images")["images"]]

    def collect(self, wanted: Collection[str], grace: float, scratch: Path) -> list[str]:
        """Remove what is not `wanted` and was not for `grace` seconds; the digests of what is gone. `scratch` is a path for a file, gone then."""
        scratch.write_text("\n".join(wanted))
        try:
            return list(self._ask("collect", manifest=str(scratch), grace=grace)["gone"])
        finally:
            scratch.unlink(missing_ok=True)

    def remove(self, digest: str) -> None:
        """Remove an image; one that is not there is no error."""
        self._ask("unstore", digest=digest)

    def _ask(self, operation: Operation, **more: Any) -> dict[str, Any]:
        return self._pool.call(LANE, Request(operation, {}, {}, **more, **self.of_fill()))
