"""Contents of an image store for people and programs, including damaged and incomplete images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from csi.errors import CorruptContent, DataCacheError, FailedPrecondition, InvalidParameter, NotFound
from csi.image_store.client import ImageStoreConfig
from csi.image_store.store import ImageStore, open_image_store
from csi.image_store.stored_image import StoredImage
from csi.manifest.manifest import Entry
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.data_cache import snapshot_id_for
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.registry.custom_resource import format_time
from csi.values import redact
from datacache.printing import escape_unprintable

IMAGE_COLUMNS = ("image", "snapshot", "content", "size", "stored", "source", "state")
MAX_LISTED_FILES = 10
"""Number of files shown unless all are requested."""
_IMAGE_NAME = re.compile(r"s-[0-9a-f]{4,20}|[0-9a-f]{4,64}")
_PARTIAL_MESSAGE = "being uploaded, or its upload was interrupted; the next upload continues from there"
_MAX_READERS = 16


class StoredState(StrEnum):
    """State of the objects under a digest: a whole image, one with a damaged record, or only parts.

    Parts belong to an upload that is running or was interrupted.
    """

    WHOLE = "whole"
    DAMAGED = "damaged"
    PARTS = "parts"


@dataclass(frozen=True)
class ListedImage:
    """Objects under a digest: the record of a whole image, else None and the `reason`."""

    digest: str
    state: StoredState
    stored: StoredImage | None = None
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Return JSON values: sizes in bytes, the time in RFC 3339, None for missing values."""
        stored = self.stored
        return {
            "digest": self.digest,
            "snapshotId": snapshot_id_for(self.digest),
            "contentBytes": stored.content_bytes if stored else None,
            "imageBytes": stored.image_bytes if stored else None,
            "storedAt": format_time(stored.stored_at) if stored and stored.stored_at else None,
            "source": _describe_source(stored),
            "state": self.state.value,
            "why": self.reason or None,
        }

    def to_columns(self) -> tuple[str, ...]:
        """Return the columns of `IMAGE_COLUMNS`."""
        stored, facts = self.stored, self.to_json()
        sizes = (_format_size(stored.content_bytes), _format_size(stored.image_bytes)) if stored else ("", "")
        state = f"{self.state}: {self.reason}" if self.reason else str(self.state)
        return (
            self.digest[:12],
            snapshot_id_for(self.digest),
            *sizes,
            str(facts["storedAt"] or ""),
            str(facts["source"] or ""),
            state,
        )


@dataclass(frozen=True)
class ImageDetails:
    """A whole image with its record and its files, in order."""

    image: ListedImage
    stored: StoredImage
    files: tuple[Entry, ...]

    def to_json(self) -> dict[str, object]:
        """Return JSON values without the files; see `ListedImage.to_json`."""
        spec, stored = _parse_spec(self.stored.access), self.stored
        more = {
            "pinned": spec.to_context() if spec else {},
            "files": len(self.files),
            "parts": len(stored.parts),
            "partBytes": stored.part_bytes,
        }
        return {**self.image.to_json(), **more}

    def list_files(self, all_files: bool) -> list[dict[str, object]]:
        """Return path, size and digest of the files, all or the first ones.

        The digest is None if the file has none to verify it by.
        """
        files = self.files if all_files else self.files[:MAX_LISTED_FILES]
        return [
            {"path": entry.path, "bytes": entry.size, "digest": entry.digest if entry.is_verifiable else None}
            for entry in files
        ]


class ImageStoreView:
    """View of the images of one image store. All methods raise the errors of a Backend."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def list_all(self) -> list[ListedImage]:
        """List everything in the store, by digest."""
        with ThreadPoolExecutor(_MAX_READERS) as threads:
            return list(threads.map(self.get, self._store.list_digests()))

    def get(self, digest: str) -> ListedImage:
        """Return what the store has under a digest."""
        try:
            stored = self._store.find(digest)
        except CorruptContent as error:
            return ListedImage(digest, StoredState.DAMAGED, reason=escape_unprintable(str(error)))
        return (
            ListedImage(digest, StoredState.WHOLE, stored)
            if stored
            else ListedImage(digest, StoredState.PARTS, reason=_PARTIAL_MESSAGE)
        )

    def resolve_names(self, names: Iterable[str]) -> list[str]:
        """Resolve names to digests, each once.

        A name is a digest, a snapshot id, or the first digits of one.

        Raises InvalidParameter for a malformed or ambiguous name, and NotFound.
        """
        digests = list(self._store.list_digests())
        return list(dict.fromkeys(self._resolve_name(name, digests) for name in names))

    def _resolve_name(self, name: str, digests: list[str]) -> str:
        if not _IMAGE_NAME.fullmatch(name):
            raise InvalidParameter(
                f"{redact(name)} does not name an image; "
                "give its digest, its snapshot id, or at least the first 4 digits of one"
            )
        matches = [digest for digest in digests if digest.startswith(name.removeprefix("s-"))]
        if not matches:
            raise NotFound(
                f"{self._store.display_name} has no image {name}; "
                "`datacache image-store list` shows those that it has"
            )
        if len(matches) > 1:
            examples = ", ".join(digest[: max(12, len(name) + 4)] for digest in matches[:3])
            raise InvalidParameter(
                f"{name} matches {len(matches)} images ({examples}{', ...' if len(matches) > 3 else ''}); "
                "give more digits"
            )
        return matches[0]

    def read_details(self, digest: str) -> ImageDetails:
        """Return a whole image. Raises CorruptContent, or FailedPrecondition if it is incomplete."""
        image = self.get(digest)
        if image.state is StoredState.DAMAGED:
            raise CorruptContent(image.reason)
        if image.stored is None:
            raise FailedPrecondition(f"image {digest[:12]} is incomplete: {image.reason}")
        try:
            return ImageDetails(image, image.stored, tuple(self._store.read_manifest(digest).files))
        except NotFound:
            raise CorruptContent(
                f"the manifest of image {digest[:12]} is gone; delete the image, and it is uploaded again"
            ) from None

    def remove(self, digest: str) -> None:
        """Remove an image, or the remains of one."""
        self._store.remove(digest)


@contextmanager
def open_image_store_view(url: str, secret: Path | None) -> Iterator[ImageStoreView]:
    """Open the images of the store at an URL, with the access key in the folder `secret` (None for none).

    Raises InvalidParameter for an invalid URL or key, FailedPrecondition if the folder cannot be read.
    """
    with open_image_store(url, ImageStoreConfig(url, secret).read_credential()) as store:
        yield ImageStoreView(store)


def _describe_source(stored: StoredImage | None) -> str | None:
    """Describe the origin of an image without secrets; None if it is unknown or not to be shown."""
    spec = _parse_spec(stored.access) if stored else None
    return spec.source.display_name if spec else None


def _parse_spec(access: Mapping[str, str]) -> CacheSpec | None:
    """Parse the origin in a record with the parser that rejects credentials; None if it rejects it."""
    try:
        return parse_accepted_parameters(access).spec
    except DataCacheError:
        return None


def _format_size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
