"""The image store of a cluster: sealed images that outlive their origins, available to every node."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from io import BytesIO
from itertools import groupby

from csi.errors import CorruptContent, DataCacheError, NotFound
from csi.image_store.announcements import (
    ANNOUNCEMENTS_FOLDER,
    Announcement,
    decode_announcement,
    encode_announcement,
)
from csi.image_store.backend import Backend, StoredObject
from csi.image_store.copying import ImageCopy
from csi.image_store.location import FolderStoreSpec, ImageStoreSpec, parse_image_store_url
from csi.image_store.parts_reader import PartsReader
from csi.image_store.stored_image import (
    IMAGES_FOLDER,
    PART_BYTES,
    StoredImage,
    image_folder,
    index_key,
    manifest_key,
    parts_folder,
    unwanted_key,
)
from csi.image_store.uploading import ImageUpload, OnProgress, ShouldStop, retry_with_backoff
from csi.images.fill.fill import fill
from csi.images.layout import layout as layouts
from csi.images.layout.layout import build_layout
from csi.images.node_store.records import ImagePaths, is_digest
from csi.manifest.manifest import Manifest
from csi.parameters.data_cache import snapshot_id_for


class ImageStore:
    """The images in `backend`.

    Two concurrent uploads of one image result in one; the parts of an interrupted upload are reused by the
    next.
    """

    def __init__(self, backend: Backend, part_bytes: int = PART_BYTES) -> None:
        self._backend, self._part_bytes = backend, part_bytes

    @property
    def display_name(self) -> str:
        """The store as messages name it."""
        return self._backend.display_name

    def find(self, digest: str) -> StoredImage | None:
        """Return the image if it is complete.

        Raises CorruptContent if its record is damaged, and the errors of a Backend.
        """
        content = self._backend.get(index_key(digest))
        return None if content is None else StoredImage.decode(content, digest)

    def read_manifest(self, digest: str) -> Manifest:
        """Read the manifest of a stored image.

        Raises NotFound, CorruptContent, and the errors of a Backend.
        """
        content = self._backend.get(manifest_key(digest))
        if content is None:
            raise NotFound(f"{self.display_name} has no image {digest[:12]}")
        try:
            manifest = Manifest.read(BytesIO(content))
        except DataCacheError as error:
            raise CorruptContent(
                f"{self.display_name} has a damaged manifest of {digest[:12]}; "
                f"remove {image_folder(digest)} there"
            ) from error
        if manifest.digest != digest:
            raise CorruptContent(
                f"{self.display_name} has another image's manifest in {image_folder(digest)}; "
                "remove that folder there"
            )
        return manifest

    def add(
        self,
        image: ImagePaths,
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop = lambda: False,
        access: Mapping[str, str] | None = None,
    ) -> StoredImage:
        """Upload a sealed image unless it is stored already; parts that exist are not sent again.

        `on_progress` counts bytes after the image's metadata. `access` is the pinned spec of an origin scope
        known to have its bytes, by default that of its manifest. Raises FillStopped if `should_stop` says so,
        and the errors of a Backend; finished parts are kept.
        """
        with image.manifest.open("rb") as stream:
            manifest = Manifest.read(stream)
        digest = manifest.digest
        if existing := self.find(digest):
            # A mark left from when nobody wanted the image would let it expire soon.
            self._backend.delete(unwanted_key(digest))
            return existing
        data_at = len(build_layout(manifest).metadata)
        upload = ImageUpload(self._backend, digest, image.image, data_at, self._part_bytes, should_stop)
        retry_with_backoff(lambda: self._backend.put(manifest_key(digest), image.manifest.read_bytes()))
        parts, verified_access = upload.run(on_progress), dict(access or manifest.access)
        stored = StoredImage(
            digest,
            upload.size,
            manifest.content_bytes,
            data_at,
            parts,
            verified_access,
            layouts.LAYOUT_FORMAT,
            self._part_bytes,
            stored_at=time.time(),
        )
        retry_with_backoff(lambda: self._backend.put(index_key(digest), stored.encode()))
        return stored

    def fill(
        self,
        stored: StoredImage,
        manifest: Manifest,
        paths: ImagePaths,
        max_connections: int,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Fill the partial image in a node's store, verifying each part; continues an earlier fill.

        Raises CorruptContent if the stored layout differs from that of `manifest`, and the errors of
        `csi.images.fill.fill.fill`.
        """
        layout = build_layout(manifest)
        if stored.layout_format != layouts.LAYOUT_FORMAT or (stored.image_bytes, stored.data_offset) != (
            layout.size,
            len(layout.metadata),
        ):
            raise CorruptContent(
                f"{self.display_name} has {stored.digest[:12]} as laid out by another version "
                "of this driver; "
                "it is filled from its origin"
            )
        open_reader = self._backend.get_reader_factory(parts_folder(stored.digest))
        parts_layout = stored.build_parts_layout(layout.metadata)
        fill(
            parts_layout,
            paths.partial,
            paths.journal,
            lambda: PartsReader(open_reader, stored),
            max_connections=max_connections,
            on_progress=on_progress,
        )

    def copy_to(
        self,
        target: ImageStore,
        digest: str,
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop = lambda: False,
    ) -> None:
        """Copy an image to another image store; raises the errors of `ImageCopy.run`."""
        ImageCopy(self._backend, target._backend, digest, on_progress, should_stop).run()

    def announce(self, announcement: Announcement) -> None:
        """Write the announcement that an image is to become a DataCache here.

        It replaces an earlier one of that DataCache.
        """
        retry_with_backoff(lambda: self._backend.put(announcement.key, encode_announcement(announcement)))

    def list_announcements(
        self, on_damaged: Callable[[str], None] = lambda why: None
    ) -> Iterator[Announcement]:
        """Yield all readable announcements, by DataCacheId; calls `on_damaged` for the others."""
        for stored_object in sorted(
            self._backend.list_objects(ANNOUNCEMENTS_FOLDER), key=lambda item: item.key
        ):
            try:
                if content := self._backend.get(stored_object.key):
                    yield decode_announcement(content, stored_object.key)
            except CorruptContent as error:
                on_damaged(str(error))

    def withdraw(self, announcement: Announcement) -> None:
        """Delete an announcement; does nothing if it does not exist."""
        self._backend.delete(announcement.key)

    def list_digests(self) -> Iterator[str]:
        """Return the digests of all images, complete or not, in order."""
        return filter(is_digest, self._backend.list_folders(IMAGES_FOLDER))

    def list_images(self) -> Iterator[StoredImage]:
        """Yield all complete images, by digest; raises as `find`."""
        for digest in self.list_digests():
            if stored := self.find(digest):
                yield stored

    def find_by_snapshot_id(self, snapshot_id: str) -> StoredImage | None:
        """Return the image with a snapshot id, None if there is none; raises as `find`."""
        for digest in self.list_digests():
            if snapshot_id_for(digest) == snapshot_id:
                return self.find(digest)
        return None

    def remove(self, digest: str) -> None:
        """Remove an image, complete or not; does nothing if it does not exist."""
        self._delete_image(digest, list(self._backend.list_objects(image_folder(digest))))

    def collect(self, wanted_digests: Collection[str], grace_seconds: float, now: float) -> list[str]:
        """Remove images unwanted for `grace_seconds` and abandoned uploads; return the removed digests.

        An image missing from `wanted_digests` is first marked, and removed by a later call. For one process
        at a time.
        """
        self._backend.sweep(now - grace_seconds)
        removed = []
        for digest, objects in self._group_by_image():
            if digest in wanted_digests:
                self._backend.delete(unwanted_key(digest))
            elif self._is_expired(digest, objects, grace_seconds, now):
                self._delete_image(digest, objects)
                removed.append(digest)
        return removed

    def _is_expired(self, digest: str, objects: list[StoredObject], grace_seconds: float, now: float) -> bool:
        is_complete = any(stored_object.key == index_key(digest) for stored_object in objects)
        marked_at = next(
            (
                stored_object.modified_at
                for stored_object in objects
                if stored_object.key == unwanted_key(digest)
            ),
            None,
        )
        if is_complete and marked_at is None:
            self._backend.put(unwanted_key(digest), b"")
            return False
        # An upload has no record and no mark; it expires by its newest part.
        since = (
            marked_at
            if is_complete and marked_at is not None
            else max(stored_object.modified_at for stored_object in objects)
        )
        return now - since >= grace_seconds

    def _delete_image(self, digest: str, objects: list[StoredObject]) -> None:
        """Delete the record first, so that no new reader starts."""
        self._backend.delete(index_key(digest))
        for stored_object in objects:
            self._backend.delete(stored_object.key)

    def _group_by_image(self) -> Iterator[tuple[str, list[StoredObject]]]:
        for digest, objects in groupby(
            sorted(self._backend.list_objects(IMAGES_FOLDER), key=lambda stored_object: stored_object.key),
            lambda stored_object: stored_object.key.split("/")[1],
        ):
            if is_digest(digest):
                yield digest, list(objects)


@contextmanager
def open_image_store(url: str, secrets: Mapping[str, str]) -> Iterator[ImageStore]:
    """Open the image store of a URL (`csi.image_store.location`); raises InvalidParameter."""
    with closing(open_backend(parse_image_store_url(url), secrets)) as backend:
        yield ImageStore(backend)


def open_backend(spec: ImageStoreSpec, secrets: Mapping[str, str]) -> Backend:
    """Open the backend of an image store with the driver's own credential.

    `secrets` has `accessKeyId` and `secretAccessKey`, or OSS's `akId` and `akSecret`. Raises InvalidParameter
    for an unusable credential.
    """
    if isinstance(spec, FolderStoreSpec):
        from csi.image_store.folder import FolderBackend

        return FolderBackend(spec)
    from csi.image_store.bucket import BucketBackend

    return BucketBackend(spec, secrets)
