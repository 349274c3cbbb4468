"""Operations of a worker on the image store: upload, find, fill from it, copy, remove."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi.errors import (
    ORIGIN_LOST,
    STORE_FALLBACK_ERRORS,
    CorruptContent,
    DataCacheError,
    FillStopped,
    NoSpace,
    NotFound,
    with_message,
)
from csi.image_store.announcements import Announcement
from csi.images.node_store.journal import read_journal_digest
from csi.images.node_store.records import ImagePaths
from csi.images.progress import FillProgress
from csi.manifest.manifest import Manifest
from csi.worker.operations import (
    Announce,
    CollectStoredImages,
    CopyStoredImage,
    FetchStoredManifest,
    FillImage,
    FindStoredImage,
    ImageStoreOperation,
    ImageStoreRef,
    ListAnnouncements,
    ListStoredImages,
    RemoveStoredImage,
    UploadImage,
    WithdrawAnnouncement,
)
from csi.worker.results import AnnouncementListing, StoredImageInfo

if TYPE_CHECKING:
    from csi.image_store.store import ImageStore
    from csi.image_store.stored_image import StoredImage

log = logging.getLogger("datacache.worker")

NO_IMAGE_STORE_HINT = (
    "no image store keeps images here (--image-store): "
    "restore the origin, or create the cache again from what it has now"
)

OnProgress = Callable[[FillProgress], None]


def execute_store_operation(operation: ImageStoreOperation, on_progress: OnProgress) -> dict[str, Any]:
    """Execute an operation and return its encoded result; `on_progress` is called by the long ones.

    Raises InvalidParameter for the URL of the image store, and the errors of a Backend.
    """
    with _open_image_store(operation.image_store) as store:
        match operation:
            case FindStoredImage():
                return operation.encode_result(_find_image(store, operation.digest_or_snapshot_id))
            case FetchStoredManifest():
                return operation.encode_result(_fetch_manifest(store, operation))
            case CollectStoredImages():
                return operation.encode_result(_collect_images(store, operation))
            case ListAnnouncements():
                return operation.encode_result(_list_announcements(store))
            case UploadImage():
                store.add(ImagePaths(operation.folder), on_progress, access=operation.source)
            case ListStoredImages():
                _write_listing(store, operation.listing)
            case RemoveStoredImage():
                store.remove(operation.digest)
            case CopyStoredImage():
                with _open_image_store(operation.target) as target:
                    store.copy_to(target, operation.digest, on_progress)
            case Announce():
                store.announce(Announcement.decode(operation.announcement))
            case WithdrawAnnouncement():
                store.withdraw(Announcement.decode(operation.announcement))
        return operation.encode_result()


def fill_from_image_store_or_origin(
    operation: FillImage, manifest: Manifest, on_progress: OnProgress, fill_from_origin: Callable[[], None]
) -> None:
    """Fill the partial image, from the image store if it has the image, else from the origin.

    A fill begun from the origin continues there; the image store takes over, from scratch, only if the origin
    fails. A failure of the image store never stops a fill: it is logged, and added to the origin's error.
    Raises that error, FillStopped and NoSpace.
    """
    # A fill from the image store journals the digest of its manifest of parts, never this one: equality means
    # that a fill from the origin has begun.
    journal = ImagePaths(operation.folder).journal
    if operation.image_store.url and read_journal_digest(journal) == manifest.digest:
        try:
            fill_from_origin()
        except STORE_FALLBACK_ERRORS as error:
            log.info(
                "filling from the image store", extra={"fields": {"image": manifest.digest, "reason": error}}
            )
            if store_error := _fill_from_image_store(operation, manifest, on_progress):
                raise _add_reason(error, f"and {store_error}") from error
        return
    store_error = (
        _fill_from_image_store(operation, manifest, on_progress)
        if operation.image_store.url
        else operation.image_store_error
    )
    if store_error is None:
        return
    if store_error:
        log.info(
            "filling from the origin", extra={"fields": {"image": manifest.digest, "reason": store_error}}
        )
    try:
        fill_from_origin()
    except (FillStopped, NoSpace):
        raise
    except DataCacheError as error:
        if store_error:
            raise _add_reason(error, f"and {store_error}") from error
        if isinstance(error, ORIGIN_LOST):
            raise _add_reason(error, NO_IMAGE_STORE_HINT) from error
        raise


def _add_reason(error: DataCacheError, reason: str) -> DataCacheError:
    return with_message(error, f"{error} ({reason})")


def _fill_from_image_store(operation: FillImage, manifest: Manifest, on_progress: OnProgress) -> str | None:
    """Fill from the image store; return None on success, else the reason."""
    try:
        with _open_image_store(operation.image_store) as store:
            stored = store.find(manifest.digest)
            if stored is None:
                return f"{store.display_name} does not have this image"
            store.fill(stored, manifest, ImagePaths(operation.folder), operation.max_connections, on_progress)
            return None
    except (FillStopped, NoSpace):
        raise
    except DataCacheError as error:
        return str(error)


def _find_image(store: ImageStore, digest_or_snapshot_id: str) -> StoredImageInfo | None:
    stored = (
        store.find_by_snapshot_id(digest_or_snapshot_id)
        if digest_or_snapshot_id.startswith("s-")
        else store.find(digest_or_snapshot_id)
    )
    return _describe_image(stored) if stored else None


def _fetch_manifest(store: ImageStore, operation: FetchStoredManifest) -> StoredImageInfo:
    stored = store.find(operation.digest)
    if stored is None:
        raise NotFound(f"{store.display_name} has no image {operation.digest[:12]}")
    manifest = store.read_manifest(operation.digest)
    with operation.manifest.open("xb") as stream:
        manifest.write(stream)
    return _describe_image(stored)


def _write_listing(store: ImageStore, listing: Path) -> None:
    with listing.open("w") as stream:
        for digest in store.list_digests():
            if info := _find_even_if_damaged(store, digest):
                stream.write(json.dumps(info.encode()) + "\n")


def _find_even_if_damaged(store: ImageStore, digest: str) -> StoredImageInfo | None:
    """Return one image of a listing, None if it is incomplete; a damaged record must not hide the others."""
    try:
        stored = store.find(digest)
    except CorruptContent as error:
        return StoredImageInfo(digest, damaged=str(error))
    return _describe_image(stored) if stored else None


def _collect_images(store: ImageStore, operation: CollectStoredImages) -> list[str]:
    wanted_digests = frozenset(operation.wanted_digests.read_text().split())
    return store.collect(wanted_digests, operation.grace_seconds, time.time())


def _list_announcements(store: ImageStore) -> AnnouncementListing:
    damaged: list[str] = []
    announcements = [announcement.encode() for announcement in store.list_announcements(damaged.append)]
    return AnnouncementListing(tuple(announcements), tuple(damaged))


@contextmanager
def _open_image_store(image_store: ImageStoreRef) -> Iterator[ImageStore]:
    # Imports obstore, whose memory only clusters with an image store should pay.
    from csi.image_store.store import open_image_store

    with open_image_store(image_store.url, image_store.secrets.values) as store:
        yield store


def _describe_image(stored: StoredImage) -> StoredImageInfo:
    return StoredImageInfo(
        digest=stored.digest,
        access=stored.access,
        image_bytes=stored.image_bytes,
        content_bytes=stored.content_bytes,
        stored_at=stored.stored_at,
    )
