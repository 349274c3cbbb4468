"""The image store of a cluster: sealed images outlive their origins there, and any node can have them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from io import BytesIO
from itertools import groupby

from csi.errors import CorruptContent, DataCacheError, NotFound
from csi.image_store.announcements import ANNOUNCED, Announcement, read, written
from csi.image_store.backend import Backend, Kept
from csi.image_store.copying import ImageCopy
from csi.image_store.location import FolderSpec, ImageStoreSpec, image_store
from csi.image_store.parts_reader import PartsReader
from csi.image_store.stored_image import IMAGES, PART_BYTES, StoredImage, folder_of, index_of, manifest_of, parts_of, snapshot_id_of, unwanted_of
from csi.image_store.uploading import Stopped, Tell, Upload, patiently
from csi.images.fill.fill import fill
from csi.images.layout import layout as layouts
from csi.images.layout.layout import lay_out
from csi.images.node_store.records import ImagePaths, is_digest
from csi.manifest.manifest import Manifest


class ImageStore:
    """The images in `backend`. Two who add one image at once leave one; one that is cut leaves parts that the next goes on with."""

    def __init__(self, backend: Backend, part_bytes: int = PART_BYTES) -> None:
        self._backend, self._part_bytes = backend, part_bytes

    @property
    def shown(self) -> str:
        """The store as messages name it."""
        return self._backend.shown

    def find(self, digest: str) -> StoredImage | None:
        """The image, if all of it is there. Raises CorruptContent where its record is damaged, and what Backend raises."""
        content = self._backend.get(index_of(digest))
        return None if content is None else StoredImage.decode(content, digest)

    def manifest(self, digest: str) -> Manifest:
        """The manifest of an image that is there; raises NotFound, CorruptContent, and what Backend raises."""
        content = self._backend.get(manifest_of(digest))
        if content is None:
            raise NotFound(f"{self.shown} has no image {digest[:12]}")
        try:
            found = Manifest.read(BytesIO(content))
        except DataCacheError as error:
            raise CorruptContent(f"{self.shown} has a damaged manifest of {digest[:12]}; remove {folder_of(digest)} there") from error
        if found.digest != digest:
            raise CorruptContent(f"{self.shown} has another image's manifest under {folder_of(digest)}; remove that there")
        return found

    def add(
        self, image: ImagePaths, tell: Tell | None = None, stopped: Stopped = lambda: False, access: Mapping[str, str] | None = None
    ) -> StoredImage:
        """Bring a sealed image here, unless it is here: what there is of it already is not sent again.

        `tell` hears how far it is, in bytes behind the image's metadata. `access` is the pinned spec of a place that is known to hold its
        bytes; without it that is where its manifest says.
        Raises FillStopped when told to stop, and what Backend raises; what is there by then stays.
        """
        with image.manifest.open("rb") as stream:
            manifest = Manifest.read(stream)
        digest = manifest.digest
        if known := self.find(digest):
            self._backend.delete(unwanted_of(digest))
            return known
        data_at = len(lay_out(manifest).metadata)
        upload = Upload(self._backend, digest, image.image, data_at, self._part_bytes, tell, stopped)
        patiently(lambda: self._backend.put(manifest_of(digest), image.manifest.read_bytes()))
        parts, known_from = upload.run(), dict(access or manifest.access)
        stored = StoredImage(
            digest, upload.size, manifest.content_bytes, data_at, parts, known_from, layouts.FORMAT, self._part_bytes, stored_at=time.time()
        )
        patiently(lambda: self._backend.put(index_of(digest), stored.encode()))
        return stored

    def fill(self, stored: StoredImage, manifest: Manifest, paths: ImagePaths, connections: int, tell: Tell | None = None) -> None:
        """Bring an image's bytes to its partial image in a node's store, each part verified; what was there is gone on with.

        Raises CorruptContent where it is laid out otherwise than `manifest` is, and as `csi.images.fill.fill.fill`.
        """
        layout = lay_out(manifest)
        if stored.layout != layouts.FORMAT or (stored.image_bytes, stored.data_at) != (layout.size, len(layout.metadata)):
            raise CorruptContent(f"{self.shown} has {stored.digest[:12]} as another version of this driver laid it out; it is filled from its origin")
        opened = self._backend.reader(parts_of(stored.digest))
        whole = stored.in_parts(layout.metadata)
        fill(whole, paths.partial, paths.journal, lambda: PartsReader(opened, stored), connections=connections, progress=tell)

    def copy_to(self, target: ImageStore, digest: str, tell: Tell | None = None, stopped: Stopped = lambda: False) -> None:
        """Bring an image to another image store; see ImageCopy for what is raised."""
        ImageCopy(self._backend, target._backend, digest, tell, stopped).run()

    def announce(self, announcement: Announcement) -> None:
        """Say that an image is to become a DataCache here, in the place of what was said of that DataCache."""
        patiently(lambda: self._backend.put(announcement.key, written(announcement)))

    def announced(self, damaged: Callable[[str], None] = lambda why: None) -> Iterator[Announcement]:
        """All that was said and can be read, by DataCacheId; `damaged` is told of the others. Raises what Backend raises."""
        for kept in sorted(self._backend.list(ANNOUNCED), key=lambda one: one.key):
            try:
                if content := self._backend.get(kept.key):
                    yield read(content, kept.key)
            except CorruptContent as error:
                damaged(str(error))

    def withdraw(self, announcement: Announcement) -> None:
        """Say so no more; what was not said is no error."""
        self._backend.delete(announcement.key)

    def digests(self) -> Iterator[str]:
        """Of all images, and of what there is of some, in order."""
        return filter(is_digest, self._backend.folders(IMAGES))

    def images(self) -> Iterator[StoredImage]:
        """All images that are whole, by digest; raises as `find`."""
        for digest in self.digests():
            if found := self.find(digest):
                yield found

    def named(self, snapshot_id: str) -> StoredImage | None:
        """The image of a snapshot id, None where there is none; raises as `find`."""
        for digest in self.digests():
            if snapshot_id_of(digest) == snapshot_id:
                return self.find(digest)
        return None

    def remove(self, digest: str) -> None:
        """Remove an image, and what there is of one; one that is not there is no error."""
        self._remove(digest, list(self._backend.list(folder_of(digest))))

    def collect(self, wanted: Collection[str], grace: float, now: float) -> list[str]:
        """Remove images that nobody has wanted for `grace` seconds, and parts of uploads that nobody went on with; the digests of what is gone.

        `wanted` are digests. An image is marked first, and goes with a later call: for one process at a time.
        """
        self._backend.tidy(now - grace)
        gone = []
        for digest, kept in self._folders():
            if digest in wanted:
                self._backend.delete(unwanted_of(digest))
            elif self._is_over(digest, kept, grace, now):
                self._remove(digest, kept)
                gone.append(digest)
        return gone

    def _is_over(self, digest: str, kept: list[Kept], grace: float, now: float) -> bool:
        whole = any(one.key == index_of(digest) for one in kept)
        marked = next((one.put_at for one in kept if one.key == unwanted_of(digest)), None)
        if whole and marked is None:
            self._backend.put(unwanted_of(digest), b"")
            return False
        since = marked if whole and marked is not None else max(one.put_at for one in kept)
        return now - since >= grace

    def _remove(self, digest: str, kept: list[Kept]) -> None:
        """The record first: from then on nobody begins to read."""
        self._backend.delete(index_of(digest))
        for one in kept:
            self._backend.delete(one.key)

    def _folders(self) -> Iterator[tuple[str, list[Kept]]]:
        for digest, kept in groupby(sorted(self._backend.list(IMAGES), key=lambda one: one.key), lambda one: one.key.split("/")[1]):
            if is_digest(digest):
                yield digest, list(kept)


@contextmanager
def opened(url: str, secrets: Mapping[str, str]) -> Iterator[ImageStore]:
    """The image store of an URL (`csi.image_store.location`); raises InvalidParameter."""
    with closing(open_backend(image_store(url), secrets)) as backend:
        yield ImageStore(backend)


def open_backend(where: ImageStoreSpec, secrets: Mapping[str, str]) -> Backend:
    """The backend of an image store, with the driver's own credential (`accessKeyId`, `secretAccessKey` or OSS's `akId`, `akSecret`).

    Raises InvalidParameter where a credential was given that it cannot use.
    """
    if isinstance(where, FolderSpec):
        from csi.image_store.folder import FolderBackend

        return FolderBackend(where)
    from csi.image_store.bucket import BucketBackend

    return BucketBackend(where, secrets)
