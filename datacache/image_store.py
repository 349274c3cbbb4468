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
from csi.image_store.client import StoreAccess
from csi.image_store.store import ImageStore, opened
from csi.image_store.stored_image import StoredImage, snapshot_id_of
from csi.manifest.manifest import Entry
from csi.parameters.cache_spec import CacheSpec
from csi.parameters.volume_parameters import parse_kept
from csi.registry.custom_resource import written
from csi.values import shown
from datacache.printing import printable

TITLES = ("image", "snapshot", "content", "size", "stored", "source", "state")
FIRST_FILES = 10
"""So many files are shown where not all are asked for."""
_NAME = re.compile(r"s-[0-9a-f]{4,20}|[0-9a-f]{4,64}")
_PARTS = "on its way here, or cut; the next upload goes on from there"
_READERS = 16


class State(StrEnum):
    """What there is under a digest: an image, one with a damaged record, or parts alone, which an upload brings or has left."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    PARTS = "parts"


@dataclass(frozen=True)
class Held:
    """What there is under a digest: the record of a whole image, else None and `why`."""

    digest: str
    state: State
    stored: StoredImage | None = None
    why: str = ""

    def facts(self) -> dict[str, object]:
        """For programs: sizes in bytes, the time in RFC 3339, None where there is no such thing."""
        stored = self.stored
        return {
            "digest": self.digest,
            "snapshotId": snapshot_id_of(self.digest),
            "contentBytes": stored.content_bytes if stored else None,
            "imageBytes": stored.image_bytes if stored else None,
            "storedAt": written(stored.stored_at) if stored and stored.stored_at else None,
            "source": _source(stored),
            "state": self.state.value,
            "why": self.why or None,
        }

    def words(self) -> tuple[str, ...]:
        """For people, as the columns of `TITLES`."""
        stored, facts = self.stored, self.facts()
        sizes = (_in_units(stored.content_bytes), _in_units(stored.image_bytes)) if stored else ("", "")
        state = f"{self.state}: {self.why}" if self.why else str(self.state)
        return (self.digest[:12], snapshot_id_of(self.digest), *sizes, str(facts["storedAt"] or ""), str(facts["source"] or ""), state)


@dataclass(frozen=True)
class Shown:
    """A whole image, its record and its files, in order."""

    held: Held
    stored: StoredImage
    files: tuple[Entry, ...]

    def summary(self) -> dict[str, object]:
        """The facts without the files themselves, as `Held.facts`."""
        spec, stored = _spec(self.stored.access), self.stored
        more = {"pinned": spec.to_context() if spec else {}, "files": len(self.files), "parts": len(stored.parts), "partBytes": stored.part_bytes}
        return {**self.held.facts(), **more}

    def listed(self, all_files: bool) -> list[dict[str, object]]:
        """Of all files, or the first: path, bytes, and the digest, None where there is none to verify them by."""
        files = self.files if all_files else self.files[:FIRST_FILES]
        return [{"path": entry.path, "bytes": entry.size, "digest": entry.digest if entry.verifiable else None} for entry in files]


class HeldImages:
    """The images of one image store. All raise what a Backend raises."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def all(self) -> list[Held]:
        """All that is there, by digest."""
        with ThreadPoolExecutor(_READERS) as threads:
            return list(threads.map(self.held, self._store.digests()))

    def held(self, digest: str) -> Held:
        """What there is under a digest."""
        try:
            stored = self._store.find(digest)
        except CorruptContent as error:
            return Held(digest, State.DAMAGED, why=printable(str(error)))
        return Held(digest, State.WHOLE, stored) if stored else Held(digest, State.PARTS, why=_PARTS)

    def digests(self, names: Iterable[str]) -> list[str]:
        """The digest of each name: a digest, a snapshot id, or the first digits of one; each once.

        Raises InvalidParameter for a name that is none, or means several images, and NotFound.
        """
        there = list(self._store.digests())
        return list(dict.fromkeys(self._digest(name, there) for name in names))

    def _digest(self, name: str, there: list[str]) -> str:
        if not _NAME.fullmatch(name):
            raise InvalidParameter(f"{shown(name)} names no image; give its digest, its snapshot id, or the first 4 digits of one, or more")
        found = [digest for digest in there if digest.startswith(name.removeprefix("s-"))]
        if not found:
            raise NotFound(f"{self._store.shown} has no image {name}; `datacache image-store list` shows those that it has")
        if len(found) > 1:
            some = ", ".join(digest[: max(12, len(name) + 4)] for digest in found[:3])
            raise InvalidParameter(f"{name} is the beginning of {len(found)} images ({some}{', ...' if len(found) > 3 else ''}); give more digits")
        return found[0]

    def show(self, digest: str) -> Shown:
        """A whole image; raises CorruptContent, and FailedPrecondition where it is not whole."""
        held = self.held(digest)
        if held.state is State.DAMAGED:
            raise CorruptContent(held.why)
        if held.stored is None:
            raise FailedPrecondition(f"image {digest[:12]} is not whole: {held.why}")
        try:
            return Shown(held, held.stored, tuple(self._store.manifest(digest).files))
        except NotFound:
            raise CorruptContent(f"the manifest of image {digest[:12]} is gone; delete the image, and have it brought here anew") from None

    def remove(self, digest: str) -> None:
        """Remove an image, and what there is of one."""
        self._store.remove(digest)


@contextmanager
def held_images(url: str, secret: Path | None) -> Iterator[HeldImages]:
    """The images of the store that an URL names, with the access key in the folder `secret`, None for none.

    Raises InvalidParameter for such an URL or key, FailedPrecondition where the folder cannot be read.
    """
    with opened(url, StoreAccess(url, secret).credential()) as store:
        yield HeldImages(store)


def _source(stored: StoredImage | None) -> str | None:
    """Where an image came from, as messages name it, without secrets; None where that is not to be told."""
    spec = _spec(stored.access) if stored else None
    return spec.source.shown if spec else None


def _spec(access: Mapping[str, str]) -> CacheSpec | None:
    """What a record says of its place, by the parser that refuses credentials; None for what it refuses."""
    try:
        return parse_kept(access).spec
    except DataCacheError:
        return None


def _in_units(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
