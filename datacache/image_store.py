"""What an image store holds, as facts for people and programs: also images that are damaged or not whole, found by what people call them."""

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
from csi.image_store.stored_image import StoredImage, snapshot_id_of
from csi.manifest.manifest import Entry
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse_accepted_parameters
from csi.registry.custom_resource import format_time
from csi.values import redact
from datacache.printing import escape_unprintable

IMAGE_COLUMNS = ("image", "snapshot", "content", "size", "stored", "source", "state")
MAX_LISTED_FILES = 10
"""So many files are shown where not all are asked for."""
_IMAGE_NAME = re.compile(r"s-[0-9a-f]{4,20}|[0-9a-f]{4,64}")
_PARTIAL_MESSAGE = "on its way here, or cut; the next upload goes on from there"
_MAX_READERS = 16


class StoredState(StrEnum):
    """What there is under a digest: an image, one with a damaged record, or parts alone, which an upload brings or has left."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    PARTS = "parts"


@dataclass(frozen=True)
class ListedImage:
    """What there is under a digest: the record of a whole image, else None and `reason`."""

    digest: str
    state: StoredState
    stored: StoredImage | None = None
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """For programs: sizes in bytes, the time in RFC 3339, None where there is no such thing."""
        stored = self.stored
        return {
            "digest": self.digest,
            "snapshotId": snapshot_id_of(self.digest),
            "contentBytes": stored.content_bytes if stored else None,
            "imageBytes": stored.image_bytes if stored else None,
            "storedAt": format_time(stored.stored_at) if stored and stored.stored_at else None,
            "source": _describe_source(stored),
            "state": self.state.value,
            "why": self.reason or None,
        }

    def to_columns(self) -> tuple[str, ...]:
        """For people, as the columns of `IMAGE_COLUMNS`."""
        stored, facts = self.stored, self.to_json()
        sizes = (_format_size(stored.content_bytes), _format_size(stored.image_bytes)) if stored else ("", "")
        state = f"{self.state}: {self.reason}" if self.reason else str(self.state)
        return (
            self.digest[:12],
            snapshot_id_of(self.digest),
            *sizes,
            str(facts["storedAt"] or ""),
            str(facts["source"] or ""),
            state,
        )


@dataclass(frozen=True)
class ImageDetails:
    """A whole image, its record and its files, in order."""

    image: ListedImage
    stored: StoredImage
    files: tuple[Entry, ...]

    def to_json(self) -> dict[str, object]:
        """The facts without the files themselves, as `AppliedLimit.facts`."""
        spec, stored = _parse_spec(self.stored.access), self.stored
        more = {
            "pinned": spec.to_context() if spec else {},
            "files": len(self.files),
            "parts": len(stored.parts),
            "partBytes": stored.part_bytes,
        }
        return {**self.image.to_json(), **more}

    def list_files(self, all_files: bool) -> list[dict[str, object]]:
        """Of all files, or the first: path, bytes, and the digest, None where there is none to verify them by."""
        files = self.files if all_files else self.files[:MAX_LISTED_FILES]
        return [
            {"path": entry.path, "bytes": entry.size, "digest": entry.digest if entry.is_verifiable else None}
            for entry in files
        ]


class ImageStoreView:
    """The images of one image store. All raise what a Backend raises."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def list_all(self) -> list[ListedImage]:
        """All that is there, by digest."""
        with ThreadPoolExecutor(_MAX_READERS) as threads:
            return list(threads.map(self.get, self._store.list_digests()))

    def get(self, digest: str) -> ListedImage:
        """What there is under a digest."""
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
        """The digest of each name: a digest, a snapshot id, or the first digits of one; each once.

        Raises InvalidParameter for a name that is none, or means several images, and NotFound.
        """
        there = list(self._store.list_digests())
        return list(dict.fromkeys(self._resolve_name(name, there) for name in names))

    def _resolve_name(self, name: str, digests: list[str]) -> str:
        if not _IMAGE_NAME.fullmatch(name):
            raise InvalidParameter(
                f"{redact(name)} names no image; give its digest, its snapshot id, or the first 4 digits of one, or more"
            )
        found = [digest for digest in digests if digest.startswith(name.removeprefix("s-"))]
        if not found:
            raise NotFound(
                f"{self._store.display_name} has no image {name}; `datacache image-store list` shows those that it has"
            )
        if len(found) > 1:
            some = ", ".join(digest[: max(12, len(name) + 4)] for digest in found[:3])
            raise InvalidParameter(
                f"{name} is the beginning of {len(found)} images ({some}{', ...' if len(found) > 3 else ''}); give more digits"
            )
        return found[0]

    def read_details(self, digest: str) -> ImageDetails:
        """A whole image; raises CorruptContent, and FailedPrecondition where it is not whole."""
        held = self.get(digest)
        if held.state is StoredState.DAMAGED:
            raise CorruptContent(held.reason)
        if held.stored is None:
            raise FailedPrecondition(f"image {digest[:12]} is not whole: {held.reason}")
        try:
            return ImageDetails(held, held.stored, tuple(self._store.read_manifest(digest).files))
        except NotFound:
            raise CorruptContent(
                f"the manifest of image {digest[:12]} is gone; delete the image, and have it brought here anew"
            ) from None

    def remove(self, digest: str) -> None:
        """Remove an image, and what there is of one."""
        self._store.remove(digest)


@contextmanager
def open_image_store_view(url: str, secret: Path | None) -> Iterator[ImageStoreView]:
    """The images of the store that an URL names, with the access key in the folder `secret`, None for none.

    Raises InvalidParameter for such an URL or key, FailedPrecondition where the folder cannot be read.
    """
    with open_image_store(url, ImageStoreConfig(url, secret).read_credential()) as store:
        yield ImageStoreView(store)


def _describe_source(stored: StoredImage | None) -> str | None:
    """Where an image came from, as messages name it, without secrets; None where that is not to be told."""
    spec = _parse_spec(stored.access) if stored else None
    return spec.source.display_name if spec else None


def _parse_spec(access: Mapping[str, str]) -> CacheSpec | None:
    """What a record says of its place, by the parser that refuses credentials; None for what it refuses."""
    try:
        return parse_accepted_parameters(access).spec
    except DataCacheError:
        return None


def _format_size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
